"""Sizes in bits after entropy coding: of codes, of values, and of masks."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Masks, is_mask
from jaxprune.masks import like
from jaxprune.reparam.reparameterization import Size, size_of
from jaxprune.trees import present_leaves


def coded_size(tree: Any, masks: Masks = None) -> Size:
    """The least bits that a code of each entry takes, by how often each value is there.

        a leaf       n H = n log2 n - sum over values of count log2 count,  of its n kept entries
        its mask     n H of True and False, n all entries

    Huffman codes take less than one bit an entry more, and arithmetic codes come close. Integers
    are codes: what they mean is stored elsewhere. Floats are values: the table of their different
    values counts too, in their dtype, and where a plain array takes less, the plain array counts.

    Args:
      tree: codes, such as `codes(learned)`, or params, such as a quantized network uses. A leading
        axis of seeds counts like other axes.
      masks: in the structure of the tree, bool, None where never pruned; None: all is kept.

    Returns:
      The numbers that are stored, tables included, and their bits, rounded up leaf by leaf.

    Raises:
      TypeError: for a mask that is not bool, or if values are not known, as under `jit`.
      ValueError: if masks belong to another tree.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> jp.reparam.coded_size({'kernel': jnp.array([0, 0, 0, 0, 1, 1, 2, 3])})
    Size(numbers=8, bits=14)
    >>> params = {'kernel': jnp.array([0., 0., 0., 0., .5, .5, .5, .5])}
    >>> jp.reparam.coded_size(params, {'kernel': params['kernel'] != 0})
    Size(numbers=5, bits=40)

    References: Shannon, 1948, A Mathematical Theory of Communication; Han et al., 2016, Deep
    Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and Huffman
    Coding.
    """
    given = dict(present_leaves(like(masks, tree))) if masks is not None else {}
    sizes = [coded_leaf(name, leaf, given.get(name)) for name, leaf in present_leaves(tree)]
    return Size(sum(size.numbers for size in sizes), sum(size.bits for size in sizes))


def coded_leaf(name: str, leaf: Any, mask: Any = None) -> Size:
    """The coded size of one leaf, its mask included.

    Raises:
      TypeError: for a mask that is not bool, or if values are not known; it names the leaf.
    """
    for x in (leaf, mask):
        if isinstance(x, (jax.core.Tracer, jax.ShapeDtypeStruct)):
            raise TypeError(
                f"coded_size counts values, and those of '{name}' are not known here. Call it "
                "outside jit, vmap and grad, on their results; size_of needs shapes only."
            )
    if mask is not None and not is_mask(mask):
        raise TypeError(
            f"coded_size needs masks of bool, True = kept; that of '{name}' is "
            f"{getattr(mask, 'dtype', type(mask).__name__)}."
        )
    kept = np.asarray(leaf).ravel() if mask is None else np.asarray(leaf)[np.asarray(mask)]
    of_mask = 0
    if mask is not None:
        of_mask = _entropy(np.array([kept.size, np.size(mask) - kept.size]))
    _, counts = np.unique(kept.view(f"u{kept.itemsize}"), return_counts=True)
    coded, plain = (
        Size(kept.size, _entropy(counts)),
        size_of(jax.ShapeDtypeStruct(kept.shape, kept.dtype)),
    )
    if jnp.issubdtype(kept.dtype, jnp.inexact):
        table = size_of(jax.ShapeDtypeStruct(counts.shape, kept.dtype))
        coded = Size(coded.numbers + table.numbers, coded.bits + table.bits)
    least = min(coded, plain, key=lambda size: size.bits)
    return Size(least.numbers, least.bits + of_mask)


def _entropy(counts: np.ndarray) -> int:
    """The entropy of all entries together, in whole bits, rounded up."""
    counts = counts[counts > 0].astype(np.float64)
    n = counts.sum()
    return math.ceil(round(float((counts * np.log2(n / counts)).sum()), 6))
