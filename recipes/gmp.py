"""Gradual magnitude pruning beside dense training: `python -m recipes.gmp --help`.

Trains several seeds in one program, each twice: dense, and pruned gradually to --sparsity. Both
start from the same weights and see the same batches. Writes a folder that reproduces itself.
`recipes.small_dense` compares with dense networks that are as small as the pruned one.

Reference: Zhu and Gupta, 2017, To prune, or not to prune.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import optax

import jaxprune as jp
from recipes.common import cli, flags, report, settings, study
from recipes.common.arms import Arm, Weights
from recipes.common.data import Dataset

ALLOCATIONS = {"global": jp.global_threshold, "erk": jp.erk, "uniform": jp.uniform}
PATTERNS = {"unstructured": jp.unstructured, "block4x4": jp.block(4, 4)}


@dataclass(frozen=True)
class Config(settings.Shifted):
    """Gradual magnitude pruning beside dense training, several seeds in one program."""

    out: Path = Path("runs/gmp")
    sparsity: flags.Fraction = 0.95
    """The fraction of weights that are pruned at the end."""
    allocation: Annotated[str, flags.choice(ALLOCATIONS)] = "global"
    """The sparsity of each layer: by one threshold for all, by its shape (erk), or uniform."""
    pattern: Annotated[str, flags.choice(PATTERNS)] = "unstructured"
    """The weights of a layer that are pruned together."""
    begin: flags.Fraction = 0.1
    """When pruning begins, as a fraction of the steps."""
    end: Annotated[float, flags.within("(begin, 1]")] = 0.7
    """When the final sparsity is reached, as a fraction of the steps."""
    every: flags.Count = 10
    """Steps between updates of the masks."""


# --- the method -----------------------------------------------------------------------------------


def arms(config: Config, dataset: Dataset, steps: int) -> dict[str, Arm]:
    """Dense training and GMP: the optimizer is the only difference."""
    module = settings.module_of(config, dataset.classes)
    optimizer = settings.optimizer(config, steps)
    how = ALLOCATIONS[config.allocation], PATTERNS[config.pattern]
    tx = gradual(optimizer, steps, config.sparsity, config.every, config.begin, config.end, *how)
    return {"dense": Arm(module, optimizer), "sparse": Arm(module, tx, Weights.SPARSE)}


def gradual(
    optimizer: optax.GradientTransformation,
    steps: int,
    sparsity: float,
    every: int,
    begin: float = 0.1,
    end: float = 0.7,
    allocation: jp.base.Allocation = jp.global_threshold,
    pattern: Any = jp.unstructured,
) -> optax.GradientTransformation:
    """`optimizer` with gradual magnitude pruning, between two fractions of the steps."""
    first, last = pruning_steps(begin, end, steps)
    ramp = optax.polynomial_schedule(
        0.0, sparsity, power=3, transition_steps=last - first, transition_begin=first
    )
    gmp = jp.prune(jp.magnitude, allocation, ramp, pattern=pattern)
    return jp.sparsify(optimizer, jp.every(every, gmp, start=first, stop=last))


def pruning_steps(begin: float, end: float, steps: int) -> tuple[int, int]:
    """The first and the last step that may prune, of fractions of the steps."""
    last = min(max(round(end * steps), 1), steps - 1)
    return min(round(begin * steps), last - 1), last


# --- the command ----------------------------------------------------------------------------------


def gradual_magnitude_pruning(config: Config) -> dict[str, Any]:
    """Trains, writes the folder `config.out`, prints a table; returns what summary.json holds."""
    outcome = study.train(config, partial(arms, config))
    numbers = study.numbers(outcome)
    dense, sparse = numbers["arms"]["dense"], numbers["arms"]["sparse"]
    summary = report.summary(
        config,
        "test accuracy after gradual magnitude pruning, beside dense training",
        sparsity=sparse["sparsity"],
        dense_accuracy=dense["test_accuracy"],
        sparse_accuracy=sparse["test_accuracy"],
        prunable_weights=sparse["prunable_weights"],
        kept_weights=sparse["kept_weights"],
        **numbers,
    )
    pictures = study.pictures(outcome, pruning_steps(config.begin, config.end, numbers["steps"]))
    return study.publish(config, outcome, summary, "Gradual magnitude pruning", pictures)


main = cli.command(Config, gradual_magnitude_pruning)

if __name__ == "__main__":
    main()
