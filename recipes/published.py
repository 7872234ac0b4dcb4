"""A published network, pruned: Magika at half of its FLOPs: `python -m recipes.published --help`.

Reads the network of the wheel `magika`, which tells the type of a file, and files of this machine.
The network's own answers are the labels. Channels are scored and removed until a share of the FLOPs
is left, the weights that read them make up for them, and the smaller network is tuned to answer as
the full one does; then its weights go onto a grid of 8 bits. The table shows how many files of a
held-out part have the same answer, and measured times in JAX and in onnxruntime.

References: Fratantonio et al., 2024 (Magika); Wang et al., 2024 (OBSPA: scores and update);
Molchanov et al., 2019 (Taylor); Hinton et al., 2015 (answers of a teacher).
"""

from __future__ import annotations

import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from jaxprune.structured import Compact, Structure
from recipes.common import cli, files, flags, folder, magika, onnx, settings, timing
from recipes.common.files import Files
from recipes.common.folder import RecipeError
from recipes.common.magika import Magika
from recipes.common.terminal import progress
from recipes.reports import published as report

SCORES = ("obspa", "activations", "taylor", "l1")
BATCHES = (1, 32)  # of the times


@dataclass(frozen=True)
class Config(settings.Run):
    """Magika at a share of its FLOPs, tuned by its own answers to files of this machine."""

    out: Path = Path("runs/published")
    files: Annotated[
        tuple[Path, ...], flags.default("the Python installation and its site-packages")
    ] = ()
    """Folders with files of many types."""
    per_extension: flags.Count = 100
    """At most so many files of an extension, chosen at random."""
    test_files: flags.Count = 1000
    """Files that are held out; the answers of the table are theirs."""
    calibration: flags.Count = 64
    """Other files, which --score and the update of the weights read."""
    flops: Annotated[float, flags.within("(0, 1)")] = 0.5
    """The share of the FLOPs that is left."""
    score: Annotated[str, flags.choice(SCORES)] = "obspa"
    """The score of a channel."""
    round_to: flags.Count = 8
    """The number of channels that are kept is a multiple of this."""
    seeds: settings.Seeds = 3
    """How often the smaller network is tuned, each time with the files in another order."""
    seed: Annotated[int, flags.at_least(0)] = 0
    """The first seed; the choice of the files depends on it too."""
    steps: flags.Count = 250
    """Steps of tuning."""
    batch_size: flags.Count = 16
    """Files of a step."""
    learning_rate: flags.Positive = 1e-3
    """The highest rate of Adam; it falls to zero by a cosine."""
    bits: Annotated[int, flags.at_least(2, 16)] = 8
    """Bits of the weights after tuning."""
    rounds: flags.Count = 9
    """How often each network is timed, in another random order each time."""

    def conflicts(self) -> Iterator[str]:
        """The mistakes of several flags together."""
        for one in self.files:
            if not one.is_dir():
                yield f"--files '{one}' is no folder"


class Study(NamedTuple):
    """What all stages share."""

    config: Config
    magika: Magika
    fn: Callable[..., jax.Array]  # of the full network
    params: Mapping[str, jax.Array]
    structure: Structure
    test: Files
    rest: Files
    answers: np.ndarray  # probabilities of the full network, (files of the rest, types)


# --- the stages -----------------------------------------------------------------------------------


def published(config: Config) -> dict[str, Any]:
    """Prunes, tunes, times, writes the folder `config.out`; returns what summary.json holds."""
    folder.check_out(config.out, config.overwrite)
    own = magika.load()
    folder.start(config.out, cli.to_yaml(config), config.overwrite)
    began = time.perf_counter()
    s = study_of(config, own)
    kept = pick(s)
    cut = jp.compact(s.structure, s.params, kept)
    repaired = jp.compact(s.structure, updated(s, kept), kept)
    tuned = [tune(s, repaired, config.seed + i) for i in range(config.seeds)]
    small = [on_grid(config.bits, repaired.fn, params, s.test.windows[:1])[0] for params in tuned]
    networks = {
        "full": (s.fn, [s.params]),
        "pruned": (cut.fn, [cut.params]),
        "updated": (repaired.fn, [repaired.params]),
        "tuned": (repaired.fn, tuned),
        f"tuned, {config.bits} bits": (repaired.fn, small),
    }
    told = {
        name: [answers(fn, params, s.test.windows, name) for params in each]
        for name, (fn, each) in networks.items()
    }
    path = config.out / folder.MODEL / "magika.onnx"
    folder.write(path, onnx.resized(s.magika.path, as_file(s, tuned[0], kept)))
    seconds = times(s, Compact(tuned[0], repaired.fn), path)
    bits = on_grid(config.bits, repaired.fn, tuned[0], s.test.windows[:1])[1]
    return report.write(s, kept, told, bits, seconds, time.perf_counter() - began)


def study_of(config: Config, own: Magika) -> Study:
    """Reads the network and the files, and asks the network about the files."""
    net = onnx.network(onnx.read(own.path))
    python = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")]
    found = files.read(config.files or python, own.window, config.per_extension, config.seed)
    n, needed = len(found.paths), config.test_files + max(config.calibration, config.batch_size)
    if n < needed:
        raise RecipeError(
            f"{n:,} files are too few for --test-files {config.test_files:,} and {needed - n} more"
            "; take more --files or a larger --per-extension, or hold out fewer"
        )
    test, rest = found.part(0, config.test_files), found.part(config.test_files, n)
    structure = jp.analyze(net.fn, net.params, test.windows[:1])
    labels = answers(net.fn, net.params, rest.windows, "labels")
    return Study(config, own, net.fn, net.params, structure, test, rest, labels)


def pick(s: Study) -> dict[str, Any]:
    """The channels of the highest scores that the share of the FLOPs pays for."""
    score = jp.structured.normalized(partial(scores, s))
    try:
        return jp.pick(
            s.structure, score(s.params), flops=s.config.flops, round_to=s.config.round_to
        )
    except ValueError as error:
        raise RecipeError(f"--flops: {' '.join(str(error).split())}") from error


def scores(s: Study, params: Any) -> Any:
    """What a channel is worth, by group."""
    batch = jnp.asarray(s.rest.windows[: s.config.calibration])
    if s.config.score == "obspa":
        return jp.calibration.obspa_scores(s.structure, params, [batch])
    if s.config.score == "activations":
        return jp.calibration.activation_norms(s.structure, params, [batch])
    chosen = jp.matching(layouts=jp.layouts(s.fn, params, batch))
    if s.config.score == "l1":
        return jp.structured.per_group(s.structure, prunable=chosen)(params)
    grads = jax.jit(jax.grad(own_answers, argnums=1), static_argnums=0)(s.fn, params, batch)
    per_group = jp.structured.per_group(s.structure, jp.saliency, prunable=chosen)
    return per_group(params, grads=grads)


def own_answers(fn: Any, params: Any, batch: jax.Array) -> jax.Array:
    """The cross entropy with the network's own answers, of one type for each file."""
    return -jnp.mean(jnp.log(jnp.max(fn(params, batch), -1)))


def updated(s: Study, kept: Any) -> Any:
    """The params, in which the weights that read pruned channels make up for them."""
    batch = jnp.asarray(s.rest.windows[: s.config.calibration])
    return jp.calibration.obspa(s.structure, s.params, kept, [batch])


def tune(s: Study, small: Compact, seed: int) -> Any:
    """The params of the smaller network, after it has learned the full network's answers."""
    config, n = s.config, s.config.batch_size
    tx = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))

    @jax.jit
    def step(params: Any, state: Any, windows: jax.Array, wanted: jax.Array) -> Any:
        grads = jax.grad(lambda params: divergence(small.fn(params, windows), wanted))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    generator = np.random.default_rng([config.seed, seed])
    epochs = -(-config.steps // (len(s.rest.paths) // n))
    order = [generator.permutation(len(s.rest.paths)) for _ in range(epochs)]
    batches = np.concatenate([one[: len(one) // n * n].reshape(-1, n) for one in order])
    params, state = small.params, tx.init(small.params)
    with progress(f"tuning, seed {seed}", config.steps) as show:
        for i in range(config.steps):
            at = batches[i]
            params, state = step(params, state, s.rest.windows[at], s.answers[at])
            show(i + 1, "steps")
    return params


def divergence(p: jax.Array, wanted: jax.Array) -> jax.Array:
    """The mean KL divergence of answers p from the wanted ones, probabilities (n, types)."""
    log = lambda x: jnp.log(jnp.maximum(x, 1e-9))
    return jnp.mean(jnp.sum(wanted * (log(wanted) - log(p)), -1))


def on_grid(bits: int, fn: Any, params: Any, window: Any) -> tuple[Any, int]:
    """The params with the weights of the products on one grid for each leaf, and their bits."""
    chosen = jp.matching(layouts=jp.layouts(fn, params, window))
    method = jp.reparam.fake_quantization(bits, prunable=chosen)
    size = jp.reparam.quantized_size(params, bits, prunable=chosen)
    return method.apply(method.init(params)), size.bits


# --- answers and times ----------------------------------------------------------------------------


def answers(fn: Any, params: Any, windows: np.ndarray, words: str, batch: int = 32) -> np.ndarray:
    """Probabilities (n, types) of windows (n, bytes), in batches; the last one is filled up."""
    run, found = jax.jit(fn), []  # params are arguments: XLA would fold constants for minutes
    batch = min(batch, len(windows))
    with progress(f"answers, {words}", len(windows)) as show:
        for first in range(0, len(windows), batch):
            some = windows[min(first, len(windows) - batch) :][:batch]
            new = min(batch, len(windows) - first)
            found.append(np.asarray(run(params, some))[-new:])
            show(first + new, "files")
    return np.concatenate(found)


def as_file(s: Study, params: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of the ONNX file of the smaller network, by name."""
    sizes = {
        name: np.array([times * params[magika.TABLE].shape[1]], np.int32)
        for name, times in magika.SIZES.items()
    }
    return {name: np.asarray(x) for name, x in params.items()} | sizes


def times(s: Study, small: Compact, path: Path) -> dict[str, dict[str, Any]]:
    """{run: {batch: seconds of a file, and how many times as fast as the full network}}."""
    import onnxruntime  # magika needs it

    jax_runs = {"full": (jax.jit(s.fn), s.params), "small": (jax.jit(small.fn), small.params)}
    sessions = {
        name: onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        for name, file in (("full", s.magika.path), ("small", path))
    }
    check(sessions["small"], small, s.test.windows[:4])
    found: dict[str, dict[str, Any]] = {}
    for batch in BATCHES:
        windows = s.test.windows[np.arange(batch) % len(s.test.windows)]
        runs: dict[str, Callable[[], Any]] = {}
        for name, of in (("full", "full"), ("small", "small"), (report.AGAIN, "full")):
            runs[f"{name}, JAX"] = partial(answered, *jax_runs[of], windows)
            runs[f"{name}, onnxruntime"] = partial(sessions[of].run, None, {"bytes": windows})
        for run in runs.values():
            run()  # compiles
        seconds = timing.interleaved(runs, s.config.rounds, s.config.seed)
        measured = {name: timing.Measured(np.array(x) / batch) for name, x in seconds.items()}
        for name, x in measured.items():
            faster = timing.ratio(measured, f"full, {name.split(', ')[1]}", name)
            told = {"seconds": timing.Spread.of(x.seconds)._asdict()}
            told["times_as_fast"] = faster._asdict()
            found.setdefault(name, {})[str(batch)] = told
    return found


def answered(fn: Any, params: Any, windows: np.ndarray) -> None:
    """Waits for the answers."""
    jax.block_until_ready(fn(params, windows))


def check(session: Any, small: Compact, windows: np.ndarray) -> None:
    """Raises `RecipeError` unless the ONNX file answers as the smaller network does."""
    (own,) = session.run(None, {"bytes": windows})
    error = float(np.abs(own - np.asarray(jax.jit(small.fn)(small.params, windows))).max())
    if not error < 1e-4:
        raise RecipeError(f"the ONNX file of the smaller network answers otherwise, by {error:.2g}")


main = cli.command(Config, published)

if __name__ == "__main__":
    main()
