"""BOPs by leaf: the bit operations of a network of few bits, counted on its program.

A sum of `terms` products of weights of b_w bits and inputs of b_a bits, of which the masks keep the
fraction `density`, costs

    terms (density b_w b_a + b_w + b_a + log2 terms)      bit operations

one for each entry of the result of a matrix product or a convolution, strides and padding included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.base import Masks, Params, is_known, is_mask
from jaxprune.masks import like
from jaxprune.programs.flops import read_products
from jaxprune.trees import present_leaves, quoted

Bits = Any  # an int, or (bits of weights, bits of inputs), each an int or a tree of ints
FLOAT32 = 32
MOST = 64


class Bops(NamedTuple):
    """The bit operations of one call.

    Attributes:
      leaves: bit operations by path of a leaf of the params; all are there.
      other: bit operations of products in which no leaf takes part, such as attention scores.
      notes: what was not counted, in words.
    """

    leaves: dict[str, float]
    other: float
    notes: tuple[str, ...]


class Work(NamedTuple):
    """The products that read one leaf.

    Attributes:
      products: how many multiplications.
      depth: the sum over the multiplications of log2 of the terms of their sum.
    """

    products: float
    depth: float

    def bops(self, weights: int, inputs: int, density: float = 1.0) -> float:
        """The bit operations, with so many bits of weights and of inputs."""
        return self.products * (density * weights * inputs + weights + inputs) + self.depth

    def plus(self, other: Work) -> Work:
        """The work of both."""
        return Work(self.products + other.products, self.depth + other.depth)

    def part(self, fraction: float) -> Work:
        """A layer's part of a stack of layers."""
        return Work(self.products * fraction, self.depth * fraction)


def count_bops(
    apply_fn: Callable[..., Any],
    params: Params,
    *inputs: Any,
    bits: Bits,
    masks: Masks = None,
    prunable: Collection[str] | None = None,
) -> Bops:
    """Bit operations of the matrix products and convolutions of `apply_fn(params, *inputs)`.

        dense:        out in (density b_w b_a + b_w + b_a + log2 in)
        convolution:  height' width' out t (density b_w b_a + b_w + b_a + log2 t),
                      t = in window, height' and width' of the *result*

    It reads the products that `count_flops` reads: `jit`, `scan`, groups and strides count as
    there, and taps on padding count. Norms, activations and additions of a bias count nothing. The
    function is traced and never run.

    The authors' utility multiplies the terms of a convolution by the size of the input, and has
    stride 1 and no padding only. This function has the equation of the papers.

    Args:
      apply_fn: `(params, *inputs) -> Any`.
      params, *inputs: pytrees of arrays or `jax.ShapeDtypeStruct`; the inputs have a batch of one
        for the bit operations of one example.
      bits: an int of [1, 64] for weights and inputs; or (weights, inputs), each an int, or a tree
        of ints like the params or `{path: int}`: the bits of a leaf, and of what it is multiplied
        with. A leaf without a number has 32.
      masks: bool like the params, None where never pruned; None for dense weights.
      prunable: as for `count_flops`; None for the paths that have a mask.

    Raises:
      TypeError: if `apply_fn` can't be called, bits are no integers, or masks are not bool or
        traced.
      ValueError: if bits are not in [1, 64], or name a path that the params do not have.

    >>> import jax.numpy as jnp
    >>> params = {'w': jnp.ones((784, 10))}
    >>> round(count_bops(lambda p, x: x @ p['w'], params, jnp.ones((1, 784)), bits=32).leaves['w'])
    8605299

    Reference: Weitz et al., 2025, Neural Architecture Codesign for Fast Physics Applications.
    """
    paths = [path for path, _ in present_leaves(params)]
    widths = Widths(bits, paths)
    left = {} if masks is None else _densities(params, masks)
    work, notes = count_work(
        apply_fn, params, *inputs, prunable=left if prunable is None else prunable
    )
    none = Work(0.0, 0.0)
    leaves = {
        path: work.get(path, none).bops(*widths.of(path), left.get(path, 1.0)) for path in paths
    }
    return Bops(leaves, work.get(None, none).bops(*widths.of(None)), notes)


def count_work(
    apply_fn: Callable[..., Any], params: Params, *inputs: Any, prunable: Collection[str] = ()
) -> tuple[dict[str | None, Work], tuple[str, ...]]:
    """The `Work` of each leaf that is read, None where no leaf takes part; and notes."""
    counted, notes = read_products(apply_fn, params, *inputs, prunable=prunable)
    work: dict[str | None, Work] = {}
    for (path, terms), flops in counted.items():
        products = float(flops) / 2
        one = Work(products, products * math.log2(terms) if products else 0.0)
        work[path] = work.get(path, Work(0.0, 0.0)).plus(one)
    return work, notes


class Widths:
    """Bits of weights and of inputs, by path of a leaf."""

    def __init__(self, bits: Bits, paths: Collection[str]):
        if isinstance(bits, tuple) and len(bits) != 2:
            raise ValueError(
                "bits is an int for weights and inputs, or a pair (weights, inputs), such as "
                f"(4, 8); got {len(bits)} values."
            )
        weights, inputs = bits if isinstance(bits, tuple) else (bits, bits)
        self.weights = _by_path("weights", weights, paths)
        self.inputs = _by_path("inputs", inputs, paths)

    def __str__(self) -> str:
        """The bits in words: `of weights of 4 bits and inputs of 8`."""

        def words(bits: dict[str | None, int]) -> str:
            low, high = min(bits.values(), default=FLOAT32), max(bits.values(), default=FLOAT32)
            return str(low) if low == high else f"{low} to {high}"

        return f"of weights of {words(self.weights)} bits and inputs of {words(self.inputs)}"

    def of(self, path: str | None) -> tuple[int, int]:
        """(bits of the weights, bits of the inputs); for None twice those of inputs."""
        inputs = self.inputs.get(path, self.inputs.get(None, FLOAT32))
        if path is None:
            return inputs, inputs
        return self.weights.get(path, self.weights.get(None, FLOAT32)), inputs


def _by_path(what: str, bits: Any, paths: Collection[str]) -> dict[str | None, int]:
    """{path: bits}, or {None: bits} where one number serves all leaves."""
    leaves = dict(present_leaves(bits))
    for path, n in leaves.items():
        at = f" of '{path}'" if path else ""
        if isinstance(n, bool) or not hasattr(n, "__index__"):
            raise TypeError(f"the bits of {what}{at} are an integer, such as 8; got {n!r}.")
        if not 1 <= n <= MOST:
            raise ValueError(f"the bits of {what}{at} are of [1, {MOST}]; got {n}.")
    if list(leaves) == [""] and "" not in paths:
        return {None: int(leaves[""])}
    unknown = [(path, None) for path in leaves if path not in paths]
    if unknown:
        raise ValueError(
            f"the bits of {what} name {quoted(unknown)}, where the params have no leaf; they have "
            f"{quoted([(path, None) for path in paths], most=6)}."
        )
    return {path: int(n) for path, n in leaves.items()}


def _densities(params: Params, masks: Masks) -> dict[str, float]:
    """The fraction of True of each mask, by path."""
    found = {}
    for path, mask in present_leaves(like(masks, params)):
        if not is_known(mask) or not is_mask(mask):
            raise TypeError(
                f"count_bops needs masks of bool whose values are known; that of '{path}' is "
                f"{getattr(mask, 'dtype', type(mask).__name__)}"
                f"{'' if is_known(mask) else ', and traced: call it outside jit'}."
            )
        found[path] = float(np.mean(jax.device_get(mask))) if mask.size else 1.0
    return found
