"""LD-Pruner's score of blocks: the change of the mean and the deviation of the outputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxprune.base import Params, arguments
from jaxprune.coupling.structure import Structure
from jaxprune.structured.knapsack import outputs_without


def moment_changes(
    structure: Structure, params: Params, blocks: Sequence[str], batches: Iterable[Any]
) -> dict[str, float]:
    """By block |mean - mean'| + |std - std'|: the outputs' statistics with the block, and without.

    The mean and the standard deviation are over examples, the first axis of all floating outputs.
    Each is a vector with an entry for each number of an output, and |.| is its Euclidean norm. A
    block that only permutes the examples' outputs costs nothing: what counts is what comes out, not
    for which input. Where each output matters, `output_losses` counts them.

        losses = moment_changes(structure, params, removable_blocks(structure, blocks), batches)
        gone = knapsack(losses, sizes, least)

    Args:
      structure: of `analyze`; its function is evaluated, as it was read.
      params: all the params that were analyzed.
      blocks: names of modules, as in `remove_blocks`.
      batches: inputs of the function; a tuple is several arguments. Together they have at least two
        examples; all examples count alike.

    Returns:
      {block: score}, not negative.

    Raises:
      ValueError: for fewer than two examples, for a block that is not there, for params that do not
        fit, and for outputs that are nan or inf; it names the block.

    Reference: Castells et al., 2024, LD-Pruner: Efficient Pruning of Latent Diffusion Models using
    Task-Agnostic Insights.
    """
    outputs = outputs_without("moment_changes", structure, params, blocks)
    sums: dict[str | None, Any] = {}
    examples = 0
    for inputs in arguments("moment_changes", batches):
        for block, of in outputs.items():
            found = [x.reshape(len(x), -1) for x in of(inputs)]
            x = np.concatenate([np.asarray(part, np.float64) for part in found], 1)
            sum_, squares = sums.get(block, (0.0, 0.0))
            sums[block] = sum_ + x.sum(0), squares + (x * x).sum(0)
        examples += len(x)
    if examples < 2:
        raise ValueError(f"moment_changes needs at least two examples; batches have {examples}.")

    def moments(block: str | None) -> tuple[Any, Any]:
        mean, square = (total / examples for total in sums[block])
        return mean, np.sqrt(np.maximum(square - mean * mean, 0))

    mean, deviation = moments(None)
    changes = {}
    for block in (name for name in outputs if name is not None):
        others = moments(block)
        change = np.linalg.norm(others[0] - mean) + np.linalg.norm(others[1] - deviation)
        if not math.isfinite(change):
            raise ValueError(
                f"moment_changes: the outputs change by nan or inf without block '{block}'. Look "
                "at the batches, and at the outputs of the network with all blocks."
            )
        changes[block] = float(change)
    return changes
