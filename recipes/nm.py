"""N:M sparsity, trained by several methods side by side: `python -m recipes.nm --help`.

For each pattern N:M every method trains the same first weights on the same batches. Every network
is tested with N of M weights. The network is an MLP whose last layer stays dense; for text it is a
decoder that tells the next character. Writes a folder that reproduces itself.

References: Mishra et al., 2021 (one shot); Bengio et al., 2013 (straight through); Zhou et al.,
2021 (SR-STE); Bambhaniya et al., 2024 (decayed and stepwise flow); Hubara et al., 2021
(transposable); Fang et al., 2023 (BDWP).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from jaxprune.reparam import DenseWeights, Reparameterization
from recipes.common import cli, data, flags, folder, models, report, settings, study, text
from recipes.common.arms import Arm, Learned, Weights
from recipes.common.data import Dataset, Split
from recipes.common.figures import patterns, style
from recipes.common.models.decoder import SIZES
from recipes.common.report import Picture

PATTERNS = "plots/patterns.png"
METHODS = ("one_shot", "ste", "sr_ste", "decayed_flow", "stepwise_flow", "transposable", "bdwp")
STRIDE = 8  # characters between the windows of a text
PATTERN = re.compile(r"([1-9]\d?):([1-9]\d?)")


@dataclass(frozen=True)
class Config(settings.Settings):
    """Methods of N:M training side by side, several seeds in one program."""

    out: Path = Path("runs/nm")
    dataset: Annotated[str, flags.choice((*data.DATASETS, *text.DATASETS))] = "digits"
    """The data set. scikit-learn brings the digits, and Python the names of characters; the others
    are read from --data-dir."""
    patterns: Annotated[tuple[str, ...], flags.DISTINCT] = ("2:4", "1:4", "1:8", "1:16")
    """N:M: of every M consecutive inputs N are kept."""
    method: Annotated[tuple[str, ...], flags.choice(METHODS), flags.DISTINCT] = METHODS
    """How the networks are trained."""
    strength: flags.NotNegative = 2e-4
    """sr_ste: of the pull of pruned weights to zero; the optimizer scales it."""
    prune_at: Annotated[float, flags.within("(0, 1)")] = 0.5
    """one_shot: when it prunes, as a fraction of the steps."""
    settle: Annotated[float, flags.within("(0, 1]")] = 0.7
    """decayed_flow, stepwise_flow: when the pattern is N:M, as a fraction of the steps."""
    every: flags.Count = 40
    """transposable: steps between updates of the masks."""
    hidden: Annotated[tuple[int, ...], flags.at_least(1)] = (256, 128)
    """The sizes of the hidden layers of the MLP: multiples of every M."""
    context: flags.Count = 16
    """names, tiny_shakespeare: characters that the decoder reads."""
    model: Annotated[str, flags.HIDDEN] = "mlp"
    norm: Annotated[str, flags.HIDDEN] = "group"
    width: Annotated[float, flags.HIDDEN] = 1.0
    seeds: settings.Seeds = 3
    """Seeds that train at once, in one program."""

    def conflicts(self) -> Iterator[str]:
        """The mistakes of several flags together."""
        yield from super().conflicts()
        for pattern in self.patterns:
            n, m = numbers_of(pattern)
            if not 0 < n < m:
                yield f"--patterns are N:M with N below M, such as 2:4, got '{pattern}'"
            elif "stepwise_flow" in self.method and (m % n or (m // n) & (m // n - 1)):
                yield f"--method stepwise_flow halves N: M / N is a power of 2, got '{pattern}'"


def numbers_of(pattern: str) -> tuple[int, int]:
    """N and M; (0, 0) of what is no pattern."""
    match = PATTERN.fullmatch(pattern)
    return (int(match[1]), int(match[2])) if match else (0, 0)


# --- the methods ----------------------------------------------------------------------------------


def arms(config: Config, dataset: Dataset, steps: int) -> dict[str, Arm]:
    """Dense training, and for each pattern every method."""
    adam = settings.optimizer(config, steps)
    if config.dataset in text.DATASETS:
        module: nn.Module = NextToken(dataset.classes)
        hidden = jp.matching("*/kernel")  # the table of characters is no kernel
    else:
        module = models.MLP(config.hidden, dataset.classes)
        hidden = jp.matching("*/kernel", exclude=f"Dense_{len(config.hidden)}/*")
    made = {"dense": Arm(module, adam)}
    for pattern in config.patterns:
        n, m = numbers_of(pattern)
        how = by_method(config, n, m, steps, module, adam, hidden)
        made |= {f"{method} {pattern}": how[method]() for method in config.method}
    return made


class NextToken(nn.Module):
    """The smallest decoder of `recipes.language`, which tells the token after the last one."""

    vocabulary: int

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        return models.Decoder(self.vocabulary, SIZES["tiny"], name="decoder")(tokens)[:, -1]


def by_method(
    config: Config, n: int, m: int, steps: int, module: nn.Module, adam: Any, hidden: Any
) -> dict[str, Callable[[], Arm]]:
    """Method -> its arm at N:M."""
    settled = max(round(config.settle * steps), 1)
    pruned_at = min(max(round(config.prune_at * steps), 1), steps - 1)
    decay = lambda step: jnp.maximum(0.0, 1.0 - step / settled)
    cross_entropy = models.classification(module)

    def of_now(**how: Any) -> jp.MaskTransform:
        return jp.dpf(1 - n / m, jp.uniform, jp.nm(n, m, **how), hidden)

    def one_shot() -> Arm:
        prune = jp.prune(jp.magnitude, jp.uniform, 1 - n / m, jp.nm(n, m), hidden)
        once = jp.every(1, prune, start=pruned_at, stop=pruned_at)
        return Arm(module, jp.sparsify(adam, once), Weights.SPARSE)

    def transposable() -> Arm:
        masks = jp.every(config.every, of_now(transposable=True))
        return Arm(module, jp.keep_dense(adam, masks), Weights.DENSE_COPY)

    def in_use(loss: Any) -> Arm:
        return reparameterized(module, adam, loss, of_now())

    def pair(method: Reparameterization) -> Arm:
        return in_use(
            lambda params, *args, step: cross_entropy(
                method.apply(DenseWeights(params), step=step), *args
            )
        )

    def bdwp() -> Arm:
        network = jp.reparam.bdwp(cross_entropy, n, m, hidden)
        return in_use(lambda params, *args, step: network(params, *args))

    reparam = jp.reparam
    return {
        "one_shot": one_shot,
        "ste": lambda: pair(reparam.sr_ste(n, m, 0.0, hidden)),
        "sr_ste": lambda: pair(reparam.sr_ste(n, m, config.strength, hidden)),
        "decayed_flow": lambda: pair(reparam.decayed_flow(n, m, decay, hidden)),
        "stepwise_flow": lambda: pair(reparam.stepwise_flow(n, m, settled, hidden)),
        "transposable": transposable,
        "bdwp": bdwp,
    }


def reparameterized(
    module: nn.Module, optimizer: optax.GradientTransformation, used: Any, masks: jp.MaskTransform
) -> Arm:
    """All weights learn by the loss `used`; tests use those that `masks` keep."""

    def loss(params, batch_stats, images, labels, step, key):
        return used(params, batch_stats, images, labels, step=step)

    def in_tests(params, step):
        return jp.apply_masks(params, masks.init(params).masks)

    learned = Learned(lambda params: params, loss, in_tests, lambda params, step: {})
    return Arm(module, jp.keep_dense(optimizer, masks), Weights.DENSE_COPY, learned=learned)


# --- the command ----------------------------------------------------------------------------------


def n_of_m(config: Config) -> dict[str, Any]:
    """Trains, writes the folder `config.out`, prints a table; returns what summary.json holds."""
    outcome = study.train(config, partial(arms, config), dataset_of(config))
    if config.dataset in text.DATASETS:
        config = replace(config, model="decoder")  # in the report
    summary = report.summary(
        config, "test accuracy of methods of N:M training, beside dense", **study.numbers(outcome)
    )
    pictures = {PATTERNS: over_patterns(config, summary["arms"])}
    return study.publish(config, outcome, summary, "N:M, trained", pictures, told=())


def dataset_of(config: Config) -> Dataset:
    """Images; or windows of characters, each with the character after it as its label."""
    if config.dataset in data.DATASETS:
        return settings.dataset_of(config)
    folder.check_out(config.out, config.overwrite, config.resume)
    read = text.load(config.dataset, config.data_dir)
    parts = [text.windows(part, config.context, STRIDE) for part in (read.train, read.test)]
    last = [Split(x, y[:, -1].astype(np.int32)) for x, y in parts]
    train = Split(*(x[: config.train_examples] for x in last[0]))
    return Dataset(train, last[1], len(read.words), np.zeros(1), np.ones(1))


def over_patterns(config: Config, numbers: Any) -> Picture:
    """The picture of accuracy over patterns."""
    seeds = lambda arm: np.asarray(numbers[arm]["test_accuracy"]["per_seed"])
    methods = {
        method: np.stack([seeds(f"{method} {pattern}") for pattern in config.patterns])
        for method in config.method
    }
    drawn = style.looks(["dense", *config.method])
    return Picture(
        patterns.accuracy(methods, config.patterns, seeds("dense"), drawn),
        "Test accuracy at each pattern: means over seeds; lines from the worst seed to the best.",
    )


main = cli.command(Config, n_of_m)

if __name__ == "__main__":
    main()
