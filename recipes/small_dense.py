"""Large and sparse, or small and dense: `python -m recipes.small_dense --help`.

Is a large network that is pruned better than a small one, at equal numbers of weights? For each
--sparsity gradual magnitude pruning (`recipes.gmp`) trains the large network, and beside it trains
a dense network that is so narrow that it has as many params as the pruned one has left. Biases and
norms count too. The network is one for images, or a decoder of text. Writes a folder that
reproduces itself. Test data choose nothing: every number is measured at the last step.

Reference: Zhu and Gupta, 2017, To prune, or not to prune: exploring the efficacy of pruning for
model compression.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import flax.linen as nn
import jax
import numpy as np

import jaxprune as jp
from recipes.common import cli, data, flags, folder, models, settings, study, text
from recipes.common.arms import Arm, Weights
from recipes.common.data import Dataset
from recipes.common.folder import RecipeError
from recipes.common.models import decoder
from recipes.gmp import gradual
from recipes.reports import small_dense as report
from recipes.reports.small_dense import SMALL, SPARSE, name

DECODER = decoder.SIZES["tiny"]


@dataclass(frozen=True)
class Config(settings.Settings):
    """Large sparse networks beside small dense ones, at equal numbers of params."""

    out: Path = Path("runs/small_dense")
    dataset: Annotated[str, flags.choice((*data.DATASETS, *text.DATASETS))] = "digits"
    """The data set. scikit-learn brings the digits, and Python the names of characters; the others
    are read from --data-dir. Text trains a decoder, which tells the next character."""
    sparsity: Annotated[tuple[float, ...], flags.within("(0, 1)"), flags.DISTINCT] = (
        *(0.5, 0.75, 0.9, 0.95, 0.98),
    )
    """The fractions of weights that are pruned at the end: one, or several side by side."""
    every: flags.Count = 10
    """Steps between updates of the masks."""
    context: flags.Count = 64
    """names, tiny_shakespeare: characters that the decoder reads at once."""
    seeds: settings.Seeds = 3
    """Seeds of each network, side by side."""

    def conflicts(self) -> Iterator[str]:
        """The mistakes of several flags together."""
        yield from super().conflicts()
        if self.dataset in text.DATASETS and self.model != "mlp":
            yield f"--dataset {self.dataset} trains a decoder: leave out --model {self.model}"


# --- the method -----------------------------------------------------------------------------------


def arms(config: Config, dataset: Dataset, steps: int) -> dict[str, Arm]:
    """The dense arm, and for each sparsity the sparse arm and its small dense twin."""
    of_width = family(config, dataset)
    shape = jax.ShapeDtypeStruct((1, *dataset.train.images.shape[1:]), np.float32)
    large, optimizer = of_width(config.width), settings.optimizer(config, steps)
    made = {"dense": Arm(large, optimizer)}
    for sparsity in sorted(config.sparsity):
        pruned = gradual(optimizer, steps, sparsity, config.every)
        small = as_small(config, of_width, shape, sparsity)
        made[name(SPARSE, sparsity)] = Arm(large, pruned, Weights.SPARSE)
        made[name(SMALL, sparsity)] = Arm(small, optimizer)
    return made


def family(config: Config, dataset: Dataset) -> Callable[[float], nn.Module]:
    """A factor for the sizes of the hidden layers -> the network."""
    if config.dataset in data.DATASETS:
        return partial(models.model, config.model, dataset.classes, config.norm)
    return lambda width: models.Decoder(dataset.classes, narrowed(DECODER, width))


def narrowed(size: decoder.Size, factor: float) -> decoder.Size:
    """A decoder with as many layers and heads, and `factor` times the features."""
    times = lambda n: max(round(factor * n), 1)
    return size._replace(
        width=times(size.width), dims=2 * times(size.dims // 2), hidden=times(size.hidden)
    )


def as_small(
    config: Config, of_width: Callable[[float], nn.Module], shape: Any, sparsity: float
) -> nn.Module:
    """The dense network whose number of params is nearest to what is left of the large one.

    Raises `RecipeError` where even one neuron a layer has more.
    """
    params, prunable = sizes(of_width(config.width), shape)
    left = params - round(sparsity * prunable)
    count = lambda width: sizes(of_width(width), shape)[0]
    low, high = bracket(count, left, config.width)
    if count(low) > left:
        raise RecipeError(
            f"--sparsity {sparsity:g} leaves {left:,} of {params:,} params, and the smallest dense "
            f"network has {count(low):,}; take a lower --sparsity, or a larger --width"
        )
    distance = lambda width: abs(math.log(count(width) / left))
    return of_width(min(low, high, key=distance))


def bracket(count: Callable[[float], int], most: float, width: float) -> tuple[float, float]:
    """Two neighboring widths at most `width`: a network with at most so many weights, and the next.

    Both are the smallest, a thousandth of `width`, where that one has more.

    Args:
      count: a width -> the number of weights, which rises with the width.
    """
    low, high = width / 1000, width
    if count(low) > most:
        return low, low
    for _ in range(11):  # to a third of a percent
        middle = math.sqrt(low * high)
        low, high = (middle, high) if count(middle) <= most else (low, middle)
    return low, high


def sizes(module: nn.Module, shape: Any) -> tuple[int, int]:
    """The number of params, and of those that can be pruned."""
    params = jax.eval_shape(module.init, jax.random.key(0), shape)["params"]
    count = lambda tree: sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
    return count(params), count(jp.kernels(params))


# --- the command ----------------------------------------------------------------------------------


def small_dense(config: Config) -> dict[str, Any]:
    """Trains, writes the folder `config.out`, prints a table; returns what summary.json holds."""
    return report.write(
        config, study.train(config, partial(arms, config), dataset_of(config, config.context))
    )


def dataset_of(config: settings.Settings, context: int) -> Dataset:
    """Images; or windows of `context` characters, labeled by the character after each (n, t)."""
    if config.dataset in data.DATASETS:
        return settings.dataset_of(config)
    folder.check_out(config.out, config.overwrite, config.resume)
    return text.dataset(config.dataset, config.data_dir, context, config.train_examples)


main = cli.command(Config, small_dense)

if __name__ == "__main__":
    main()
