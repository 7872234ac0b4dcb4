"""How large a sparse layer may be at the FLOPs of a dense one: the forms of Sparse-IFT.

One number, the sparsity s, decides all: k = 1 / (1 - s) times as many weights, of which 1 - s are
kept. Weights stand for FLOPs, since all of a layer multiply equally often.
"""

from __future__ import annotations

import math
from typing import Any

from jaxprune.base import is_int


def wide(width: int, sparsity: float) -> int:
    """Sparse wide: the width of hidden layers, sqrt(k) times as many neurons, rounded down.

    Both sides of a hidden kernel grow, so that it has k times as many weights.

    Args:
      width: of the dense network.
      sparsity: of each hidden kernel, in [0, 1).

    Raises:
      ValueError: if an argument is out of range.

    Reference: Thangarasa et al., 2024, Sparse-IFT: Sparse Iso-FLOP Transformations for Maximizing
    Training Efficiency.

    >>> import jaxprune as jp
    >>> [jp.allocation.wide(64, s) for s in (0.5, 0.75, 0.9)]
    [90, 128, 202]
    """
    _check("wide", sparsity, width=width)
    return math.floor(_exact(width * math.sqrt(_times(sparsity))))


def parallel(sparsity: float) -> int:
    """Sparse parallel: how many branches stand for a layer, k rounded.

    Each has its norm; they are summed, then comes the activation. Without a norm, or something else
    between them, their sum would be one sparse kernel. Where k is no integer the FLOPs are not
    equal, (1 - s) times the result of the dense ones.

    Raises:
      ValueError: if the sparsity is outside [0, 1).

    Reference: Thangarasa et al., 2024, Sparse-IFT: Sparse Iso-FLOP Transformations for Maximizing
    Training Efficiency.
    """
    _check("parallel", sparsity)
    return round(_times(sparsity))


def factorized(inputs: int, outputs: int, sparsity: float) -> int:
    """Sparse factorized: the neurons between two sparse kernels that stand for one, rounded up.

        d = inputs outputs / ((1 - s) (inputs + outputs))

    The first kernel has the window of the dense one, the second has none; between them are a norm
    and an activation.

    Args:
      inputs: of an output of the dense kernel: channels times the window.
      outputs: of the dense kernel.
      sparsity: of both kernels, in [0, 1).

    Raises:
      ValueError: if an argument is out of range.

    Reference: Thangarasa et al., 2024, Sparse-IFT: Sparse Iso-FLOP Transformations for Maximizing
    Training Efficiency. In the authors' code 1 / (1 - 0.9) is more than 10, so that it has one
    neuron more at 90 %.

    >>> import jaxprune as jp
    >>> [jp.allocation.factorized(9 * 64, 64, s) for s in (0.5, 0.75, 0.9)]
    [116, 231, 576]
    """
    _check("factorized", sparsity, inputs=inputs, outputs=outputs)
    return math.ceil(_exact(inputs * outputs * _times(sparsity) / (inputs + outputs)))


def doped(inputs: int, outputs: int, sparsity: float) -> int:
    """Sparse doped: the rank of two dense factors beside a sparse kernel, rounded down.

        rank = s inputs outputs / (inputs + outputs)

    So the sparse kernel and the factors have as many weights as the dense kernel.
    `jp.reparam.doped` is the pair.

    Args:
      inputs: of an output of the kernel: channels times the window.
      outputs: of the kernel.
      sparsity: of the kernel, in [0, 1).

    Raises:
      ValueError: if an argument is out of range.

    Reference: Thangarasa et al., 2024, Sparse-IFT: Sparse Iso-FLOP Transformations for Maximizing
    Training Efficiency.

    >>> import jaxprune as jp
    >>> [jp.allocation.doped(9 * 64, 64, s) for s in (0.5, 0.75, 0.9)]
    [28, 43, 51]
    """
    _check("doped", sparsity, inputs=inputs, outputs=outputs)
    return math.floor(_exact(sparsity * inputs * outputs / (inputs + outputs)))


def _times(sparsity: float) -> float:
    """k, how many times as many weights a sparse layer may have: 1 / (1 - 0.9) is 10."""
    return _exact(1 / (1 - sparsity))


def _exact(x: float) -> float:
    """Without the last digits of a float: what is an integer is one, so that it may be cut."""
    return round(x, 9)


def _check(what: str, sparsity: Any, **sizes: Any) -> None:
    if not (isinstance(sparsity, (int, float)) and 0 <= sparsity < 1):
        raise ValueError(
            f"allocation.{what}: sparsity is the fraction pruned of each kernel, in [0, 1); got "
            f"{sparsity!r}."
        )
    for name, size in sizes.items():
        if not is_int(size, 1):
            raise ValueError(
                f"allocation.{what}: {name} is a whole number, at least 1; got {size!r}."
            )
