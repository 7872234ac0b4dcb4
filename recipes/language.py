"""A decoder trained on text: `python -m recipes.language --help`.

Trains several seeds in one program, on a text that needs no files, on tiny Shakespeare, or on a
file. Writes the models, samples of text, a learning curve, and bits a character: the cross-entropy
to base 2. Tokens are characters, or byte pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from recipes.common import checkpoints, cli, flags, folder, lanes, models, settings, text
from recipes.common.data import Key, Split
from recipes.common.folder import RecipeError
from recipes.common.journal import At, Journal, journal
from recipes.common.lanes import Lane, State
from recipes.common.models import decoder
from recipes.common.text import Text
from recipes.reports import language as report

SAMPLE = Key.STUDY  # the purpose of a seed's key
LOG_EVERY = {"tiny": 25, "small": 5, "medium": 1}  # about a second on a core
TOKENS = ("characters", "pairs")
WARM_UP, DECAY, CLIP = 0.05, 0.1, 1.0


@dataclass(frozen=True)
class Config(settings.Settings):
    """A decoder trained on text."""

    out: Path = Path("runs/language")
    dataset: Annotated[str, flags.choice(text.DATASETS)] = "names"
    """The text. Python brings the names of characters; tiny_shakespeare is read from --data-dir."""
    text: Annotated[Path | None, flags.default("no file")] = None
    """Read the text from a file (UTF-8), in place of --dataset."""
    tokens: Annotated[str, flags.choice(TOKENS)] = "characters"
    """What the model reads: characters, or byte pairs. Bits are of a character for both."""
    vocabulary: flags.Count = 512
    """The number of tokens of --tokens pairs, characters among them."""
    context: flags.Count = 64
    """Tokens that the model reads at once."""
    model: Annotated[str, flags.choice(decoder.SIZES)] = "tiny"
    """The size of the decoder: about 0.13, 0.8 or 9.9 million weights."""
    samples: flags.Count = 3
    """Samples of text, by the first seed."""
    characters: flags.Count = 300
    """Characters of a sample."""
    temperature: flags.Positive = 0.8
    """What divides the logits of samples: low is careful, 1 is as the model has learned."""
    prompt: Annotated[str | None, flags.default("a new line")] = None
    """What samples begin with."""

    seeds: settings.Seeds = 1
    """The number of seeds that train at once."""
    steps: Annotated[int, flags.at_least(2)] = 2000
    """Training steps."""
    batch_size: flags.Count = 32
    """Windows per step and seed."""
    learning_rate: flags.Positive = 3e-3
    """The highest rate of AdamW: it rises over 5 % of the steps, then falls to 0 as a cosine."""
    evaluations: flags.Count = 10
    """How often validation bits are measured, evenly spread."""
    log_every: Annotated[
        int | None, flags.at_least(1), flags.default("tiny 25, small 5, medium 1")
    ] = None
    """Steps in one call of the device. Lines of metrics.jsonl and Ctrl-C wait for its end; more
    steps are faster."""

    train_examples: Annotated[int | None, flags.HIDDEN] = None
    norm: Annotated[str, flags.HIDDEN] = "rms"
    width: Annotated[float, flags.HIDDEN] = 1.0
    epochs: Annotated[float | None, flags.HIDDEN] = None
    optimizer: Annotated[str, flags.HIDDEN] = "adamw"
    schedule: Annotated[str, flags.HIDDEN] = "cosine"
    keep_best: Annotated[bool, flags.HIDDEN] = False


def language(config: Config) -> dict[str, Any]:
    """Trains, writes `config.out`, prints a table; returns what summary.json holds."""
    study = study_of(config)
    with journal(config) as log:
        state = trained(config, study, log)
        checkpoints.save_model(
            config.out / folder.MODEL, state.params, {}, lanes.keep_all(state.params)
        )
        ends = tested(config, study, state.params)
        return report.write(config, study, state.params, log.records, ends, log.seconds())


# --- the method -----------------------------------------------------------------------------------


class Study(NamedTuple):
    """The text, the network, and how it trains."""

    text: Text
    program: lanes.Program  # its examples are windows of the text
    lane: Lane  # an order of the windows for each seed
    bits: dict[str, text.Bits]  # by the part of the text
    validation: Split  # windows that do not overlap
    start: np.ndarray  # tokens (t,) that samples begin with

    @property
    def apply(self) -> Any:
        """(variables, tokens (n, t)) -> logits (n, t, vocabulary)."""
        return self.program.module.apply


def study_of(config: Config) -> Study:
    """The study of the flags; raises `RecipeError` for a text that can't be read, or is short."""
    folder.check_out(config.out, config.overwrite, config.resume)
    vocabulary = config.vocabulary if config.tokens == "pairs" else 0
    read = text.load(config.dataset, config.data_dir, config.text, vocabulary)
    stride = max(1, config.context // text.OVERLAP)
    train = text.windows(read.train, config.context, stride)
    settings.check_batch(config.batch_size, len(train.labels))
    module = models.Decoder(len(read.words), decoder.SIZES[config.model])
    program = lanes.program(
        module,
        lambda lane: optimizer(config.learning_rate, config.steps),
        train,
        config.batch_size,
        config.log_every or LOG_EVERY[config.model],
        loss=next_token(module),
    )
    apart = {
        part: text.windows(getattr(read, part), config.context, config.context)
        for part in ("validation", "test")
    }
    return Study(
        read,
        program,
        Lane(lanes.seed_keys(config.seed, config.seeds)),
        {
            part: text.bits(module.apply, split, lengths=read.lengths)
            for part, split in apart.items()
        },
        apart["validation"],
        start_of(config, read),
    )


def start_of(config: Config, read: Text) -> np.ndarray:
    """The tokens that samples begin with, the last ones of a long prompt."""
    usual = "\n" if "\n" in read.characters else read.words[int(read.validation[0])]
    prompt = config.prompt or usual
    return read.encode(prompt)[-config.context :]


def optimizer(learning_rate: float, steps: int) -> optax.GradientTransformation:
    """AdamW with a warm-up, a cosine, and gradients of norm 1 at most."""
    rates = optax.warmup_cosine_decay_schedule(0.0, learning_rate, round(WARM_UP * steps), steps)
    decayed = lambda params: jax.tree.map(lambda w: w.ndim > 1, params)  # not the norms
    return optax.chain(
        optax.clip_by_global_norm(CLIP),
        optax.adamw(rates, b2=0.99, weight_decay=DECAY, mask=decayed),
    )


def next_token(module: nn.Module) -> lanes.Loss:
    """The cross-entropy of the next token, over all places of the windows."""

    def loss(params: Any, state: State, seen: jax.Array, tokens: jax.Array, lane: Lane) -> Any:
        logits: Any = module.apply({"params": params}, seen)
        accuracy = jnp.mean(jnp.argmax(logits, -1) == tokens)
        return text.cross_entropy(logits, tokens), (accuracy, {})

    return loss


# --- training -------------------------------------------------------------------------------------


def trained(config: Config, s: Study, log: Journal) -> State:
    """The networks after all steps; a line for each call of the device, with samples now and then.

    Raises `RecipeError` for training that has diverged.
    """
    share = len(s.text.train) / s.text.size(s.text.train)  # tokens of a character

    def train(state: State, start: int, at: At) -> State:
        for point in lanes.advance(s.program, state, s.lane, config.steps, start):
            loss = np.asarray(point.metrics["loss"])
            if not np.isfinite(loss).all():
                raise RecipeError(
                    f"{(~np.isfinite(loss)).sum()} of {len(loss)} networks have diverged at step "
                    f"{point.step}; lower --learning-rate"
                )
            record = {"step": point.step, "train_bits": (share * loss / np.log(2)).tolist()}
            if is_tested(config, start, point.step):
                params = point.state.params
                record["validation_bits"] = s.bits["validation"](params).tolist()
                record["sample"] = written(config, s, lanes.lane_of(params, 0), 1)[0]
            start = point.step
            log.log(record | {"seconds": log.seconds()})
            at(start, point.state)
        return lanes.gathered(point.state)

    network = lanes.initial(s.program, s.lane.order)._replace(masks=None)
    words = f"{config.seeds} networks of {weights(network.params):,} weights"
    begun = lanes.begin(s.program, network, s.lane)
    return log.once("train", config.steps, begun, train, words)


def is_tested(config: Config, before: int, now: int) -> bool:
    """Whether one of the evaluations lies after step `before`, and not after step `now`."""
    done = lambda step: step * config.evaluations // config.steps
    return done(before) < done(now)


def weights(stack: Any) -> int:
    """The number of weights of one network."""
    return sum(x[0].size for x in jax.tree.leaves(stack))


def tested(config: Config, s: Study, params: Any) -> dict[str, Any]:
    """Bits of a stack on both held-out parts, and samples of its first network."""
    ends = {f"{part}_bits": bits(params).tolist() for part, bits in s.bits.items()}
    return ends | {"samples": written(config, s, lanes.lane_of(params, 0), config.samples)}


def written(config: Config, s: Study, params: Any, samples: int) -> list[str]:
    """Samples of one network; the same key for all networks, so that they can be compared."""
    key = jax.random.fold_in(jax.random.key(config.seed), SAMPLE)
    start = jnp.tile(s.start, (samples, 1))
    how = config.characters, config.context, config.temperature
    rows = text.sampled(s.apply, params, key, start, *how)
    return [s.text.decode(row)[: config.characters] for row in rows]


main = cli.command(Config, language)

if __name__ == "__main__":
    main()
