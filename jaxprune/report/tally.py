"""Weights kept and weights wanted, leaf by leaf, as Python ints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Masks, Sparsities, Sparsity, check_fraction, is_known, is_mask
from jaxprune.selection.counting import count
from jaxprune.trees import present_leaves, quoted


@dataclass(frozen=True)
class Layer:
    """One leaf of the params, or a sum of leaves.

    Attributes:
      path: its name.
      shape: None for a sum.
      kept: how many weights have a mask that is True, or no mask.
      total: how many weights there are.
      target_kept: how many the target keeps; None without a target.
      outside: how many pruned weights are not zero.
      ever_active: how many were ever kept; None if it was not recorded.
      flops: FLOPs of the products that read the leaf; None if they were not counted.
      sparse_flops: flops * kept / total.
      bops: bit operations of the kept weights (`count_bops`); None without bits.
      coded_bits: the least that values and mask take (`reparam.coded_size`); None without coded.
    """

    path: str
    shape: tuple[int, ...] | None
    kept: int
    total: int
    target_kept: int | None = None
    outside: int = 0
    ever_active: int | None = None
    flops: int | None = None
    sparse_flops: int | None = None
    bops: float | None = None
    coded_bits: int | None = None

    @property
    def sparsity(self) -> float:
        """The fraction pruned."""
        return (self.total - self.kept) / max(self.total, 1)

    @property
    def target(self) -> float | None:
        """The fraction that the target prunes, in whole weights."""
        if self.target_kept is None:
            return None
        return (self.total - self.target_kept) / max(self.total, 1)

    def to_dict(self) -> dict[str, Any]:
        """The attributes, `sparsity` and `target`, for JSON."""
        shape = None if self.shape is None else list(self.shape)
        return asdict(self) | {"shape": shape, "sparsity": self.sparsity, "target": self.target}


def sum_of(path: str, layers: Sequence[Layer]) -> Layer:
    """The sum of `layers`; a field is None if it is None in one of them."""

    def over(field: str) -> Any:
        values = [getattr(layer, field) for layer in layers]
        return None if None in values else sum(values)

    weights = ("kept", "total", "target_kept", "outside", "ever_active")
    summed = (*weights, "flops", "sparse_flops", "bops", "coded_bits")
    return Layer(path, None, **{field: over(field) for field in summed})


def check_masks(masks: Masks) -> None:
    """TypeError unless every mask is an array of bool whose values are known."""
    for path, mask in present_leaves(masks):
        if not is_known(mask):
            raise TypeError(_unknown(path))
        if not is_mask(mask):
            raise TypeError(
                f"report needs masks of bool, True = kept; that of '{path}' is "
                f"{getattr(mask, 'dtype', type(mask).__name__)}. From gates: "
                "jax.tree.map(lambda g: g > 0, gates)."
            )


def tally(masked: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[int, int]]:
    """How many weights are kept, and how many pruned weights are not zero, by path.

    Args:
      masked: (leaf, mask) by path; their shapes are equal.

    Raises:
      TypeError: if the values of a leaf are not known.
    """
    for path, (leaf, _) in masked.items():
        if isinstance(leaf, (jax.core.Tracer, jax.ShapeDtypeStruct)):
            raise TypeError(_unknown(path))
    counts = _counts(list(masked.values()))
    if not is_known(counts[0][0]):  # under jit constants are traced too
        raise TypeError(_unknown(next(iter(masked))))
    counts = jax.device_get(counts)
    total = lambda rows: int(np.sum(rows, dtype=np.int64))
    return {path: (total(a), total(b)) for path, (a, b) in zip(masked, counts, strict=True)}


@jax.jit
def _counts(pairs: list[tuple[jax.Array, jax.Array]]) -> list[tuple[jax.Array, jax.Array]]:
    """Both numbers for each row of the first axis: a row fits into int32, the sum may not."""
    rows = lambda flags: flags.sum(range(1, flags.ndim), dtype=jnp.int32)
    return [(rows(mask), rows((leaf != 0) & ~mask)) for leaf, mask in pairs]


def _unknown(path: str) -> str:
    return (
        f"report counts weights, so it needs values; those of '{path}' are not known here. Call it "
        "outside jit, vmap and grad, on their results."
    )


def wanted(
    target: Sparsities | Sparsity, sizes: Mapping[str, int]
) -> tuple[dict[str, int | None], int | None]:
    """How many weights a target keeps of each leaf, and of all; None where there is no target.

    Args:
      target: sparsities as an allocation returns them; one number for all leaves together; None.
      sizes: how many weights each masked leaf has, by path.

    Raises:
      ValueError: if a target has no path in `sizes`, or is out of range.
      TypeError: if a target is no number.
    """
    everything = sum(sizes.values())
    given = dict(present_leaves(target))
    if list(given) == [""] and "" not in sizes:  # a number, not a tree
        return {}, everything - _pruned("all weights", target, everything)
    unknown = [(path, None) for path in given if path not in sizes]
    if unknown:
        raise ValueError(
            f"the target has sparsities for {quoted(unknown)}, where there is no mask. Make it "
            "from the scores of the masks: target=erk(scores, 0.9)."
        )
    counts: dict[str, int | None] = {}
    for path, sparsity in given.items():
        counts[path] = sizes[path] - _pruned(f"'{path}'", sparsity, sizes[path])
    in_all = sum(n or 0 for n in counts.values())
    return counts, in_all if len(counts) == len(sizes) else None


def _pruned(what: str, sparsity: Sparsity, size: int) -> int:
    """How many of `size` weights are pruned; an array has one sparsity a seed."""
    if not np.ndim(sparsity):
        return _pruned_of_one(what, sparsity, size)
    seeds = list(jnp.ravel(sparsity))
    if not seeds or size % len(seeds):
        raise ValueError(
            f"the target of {what} has shape {np.shape(sparsity)}, and its {size:,} weights are "
            "not that number of seeds. A target is one number a leaf."
        )
    return sum(_pruned_of_one(what, each, size // len(seeds)) for each in seeds)


def _pruned_of_one(what: str, sparsity: Sparsity, size: int) -> int:
    if not is_known(sparsity):
        raise TypeError(_unknown(what))
    if isinstance(sparsity, (np.number, np.ndarray, jax.Array)):
        if jnp.issubdtype(sparsity.dtype, jnp.integer):
            sparsity = int(sparsity)
        elif sparsity.dtype.itemsize > 4:  # `count` reads narrower floats in decimals
            sparsity = float(sparsity)
    if isinstance(sparsity, int) and not isinstance(sparsity, bool):
        if 0 <= sparsity <= size:
            return sparsity
        raise ValueError(
            f"the target prunes {sparsity:,} of the {size:,} weights of {what}. An int is a number "
            "of weights; write a fraction as a float in [0, 1)."
        )
    try:
        return int(count(check_fraction(sparsity), size))
    except (TypeError, ValueError) as error:
        raise type(error)(f"the target of {what}: {error}") from error
