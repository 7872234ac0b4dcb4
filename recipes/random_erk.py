"""Random pruning at initialization beside dense training: `python -m recipes.random_erk --help`.

Masks are drawn before the first step and kept. What matters then is how much of each layer is kept
(--allocation), and how wide the network is (--widths): networks of all widths keep as many weights
as that of width 1 does at --sparsity, or have all that sparsity (--equal). Each width has a dense
twin, with the same weights at first and the same batches. Writes a folder that reproduces itself.

Reference: Liu et al., 2022, The Unreasonable Effectiveness of Random Pruning: Return of the Most
Naive Baseline for Sparse Training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import flax.linen as nn
import jax
import numpy as np

import jaxprune as jp
from recipes.common import cli, flags, models, report, settings, study
from recipes.common.arms import Arm, Weights
from recipes.common.data import Dataset, Split
from recipes.common.figures import left, style
from recipes.common.folder import RecipeError
from recipes.common.models import LossFn, classification
from recipes.common.report import Picture
from recipes.prune_at_init import loss_on

WIDTHS = "plots/widths.png"
EQUAL = ("weights", "sparsity")
ALLOCATIONS = ("uniform", "uniform_plus", "er", "erk", "erk_plus", "snip")


@dataclass(frozen=True)
class Config(settings.Shifted):
    """Random pruning at initialization beside dense training, several seeds in one program."""

    out: Path = Path("runs/random_erk")
    allocation: Annotated[tuple[str, ...], flags.choice(ALLOCATIONS), flags.DISTINCT] = (
        "uniform",
        "erk",
    )
    """The sparsity of each layer: one rule, or several to train side by side."""
    sparsity: flags.Fraction = 0.95
    """The fraction of weights that are pruned at width 1."""
    width: Annotated[float, flags.HIDDEN] = 1.0
    widths: Annotated[tuple[float, ...], flags.within("(0, 100]"), flags.DISTINCT] = (1.0,)
    """Factors for the sizes of the hidden layers."""
    equal: Annotated[str, flags.choice(EQUAL)] = "weights"
    """What is equal for networks of all widths: the number of weights kept, or the sparsity."""


# --- the method -----------------------------------------------------------------------------------


def arms(config: Config, dataset: Dataset, steps: int) -> dict[str, Arm]:
    """Of each width a dense arm, and one for each allocation."""
    optimizer = settings.optimizer(config, steps)
    batch = Split(*(x[: config.batch_size] for x in dataset.train))

    def module_of(width: float) -> nn.Module:
        return models.model(config.model, dataset.classes, config.norm, width)

    def sparse(masks: Callable[[jax.Array], jp.MaskTransform], module: nn.Module) -> Arm:
        sparsified = lambda key: jp.sparsify(optimizer, masks(key))
        return Arm(module, sparsified, Weights.SPARSE)

    made = {}
    for width in config.widths:
        module = module_of(width)
        sparsity = config.sparsity
        if width != 1 and config.equal == "weights":
            sparsity = equal_weights(config.sparsity, module_of(1.0), module, batch)
        loss_fn = classification(module)
        made[name("dense", width, config)] = Arm(module, optimizer)
        for allocation in config.allocation:
            masks = random_masks(allocation, config.model, sparsity, loss_fn, batch)
            made[name(allocation, width, config)] = sparse(masks, module)
    return made


def random_masks(
    allocation: str, model: str, sparsity: float, loss_fn: LossFn, batch: Split
) -> Callable[[jax.Array], jp.MaskTransform]:
    """The key of a seed -> its masks."""
    first, last = models.FIRST_LAST[model]
    by_shape = {
        "uniform": jp.uniform,
        "uniform_plus": jp.allocation.uniform_plus(first, last),
        "er": jp.er,
        "erk": jp.erk,
        "erk_plus": jp.allocation.erk_plus(last),
    }
    if allocation == "snip":
        return lambda key: snip_ratios(key, sparsity, loss_fn, batch)
    return lambda key: jp.static(key, sparsity, by_shape[allocation])


def snip_ratios(key: jax.Array, sparsity: float, loss_fn: LossFn, batch: Split) -> jp.MaskTransform:
    """Random masks that keep as much of each layer as SNIP would, on a batch.

    Each seed uses the saliency of its first weights; the paper uses another draw of weights.
    """

    def init(params: Any) -> Any:
        ratios = jp.allocation.like(jp.at_init.snip(loss_on(loss_fn, batch), params))
        return jp.static(key, sparsity, ratios).init(params)

    return jp.MaskTransform(init, jp.static(key, sparsity).update)


def equal_weights(sparsity: float, one: nn.Module, other: nn.Module, batch: Split) -> float:
    """The sparsity at which `other` keeps as many weights as `one` does at `sparsity`."""
    sizes = weights(one, batch), weights(other, batch)
    kept = sizes[0] - round(sparsity * sizes[0])
    if kept > sizes[1]:
        raise RecipeError(
            f"--widths: a network has {sizes[1]:,} weights, fewer than the {kept:,} "
            f"that --sparsity {sparsity:g} keeps at width 1"
        )
    return 1 - kept / sizes[1]


def weights(module: nn.Module, batch: Split) -> int:
    """The number of prunable weights."""
    variables = jax.eval_shape(module.init, jax.random.key(0), batch.images[:1])
    return sum(x.size for x in jax.tree.leaves(jp.kernels(variables["params"])))


def name(arm: str, width: float, config: Config) -> str:
    """The name of an arm, with its width if there are several."""
    return arm if len(config.widths) == 1 else f"{arm} x{width:g}"


# --- the command ----------------------------------------------------------------------------------


def random_pruning(config: Config) -> dict[str, Any]:
    """Trains, writes the folder `config.out`, prints a table; returns what summary.json holds."""
    outcome = study.train(config, partial(arms, config))
    summary = report.summary(
        config,
        "test accuracy of random pruning at initialization, beside dense training",
        allocations=list(config.allocation),
        widths=list(config.widths),
        **study.numbers(outcome),
    )
    add_gaps(config, summary["arms"])
    pictures = study.pictures(outcome)
    if len(config.widths) > 1:
        pictures[WIDTHS] = widths_picture(config, summary["arms"])
    return study.publish(config, outcome, summary, "Random pruning at initialization", pictures)


def add_gaps(config: Config, numbers: Mapping[str, dict[str, Any]]) -> None:
    """Adds to each sparse arm how much better it is than its dense twin, seed by seed."""
    for width in config.widths:
        dense = numbers[name("dense", width, config)]["test_accuracy"]["per_seed"]
        for allocation in config.allocation:
            own = numbers[name(allocation, width, config)]
            gaps = np.subtract(own["test_accuracy"]["per_seed"], dense)
            own["accuracy_minus_dense"] = report.over_seeds(gaps)


def widths_picture(config: Config, numbers: Mapping[str, Mapping[str, Any]]) -> Picture:
    """Accuracy, and the gap to dense, against width."""

    def curve(arm: str, key: str) -> style.Curve:
        per_seed = [numbers[name(arm, width, config)][key]["per_seed"] for width in config.widths]
        return config.widths, np.asarray(per_seed)

    names = ("dense", *config.allocation)
    return Picture(
        left.over_widths(
            {arm: curve(arm, "test_accuracy") for arm in names},
            {arm: curve(arm, "accuracy_minus_dense") for arm in config.allocation},
            {"weights": "numbers of weights", "sparsity": "sparsity"}[config.equal],
        ),
        "Networks of different widths and their dense twins: mean over seeds; bands from the worst "
        "seed to the best.",
    )


main = cli.command(Config, random_pruning)

if __name__ == "__main__":
    main()
