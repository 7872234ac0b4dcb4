"""What pruning came to, layer by layer: a value that prints as a table and draws itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import rendering
from jaxprune.base import Masks, Params, Sparsities, Sparsity, check_sparsity, is_mask
from jaxprune.flops import count_flops
from jaxprune.masks import like
from jaxprune.rules import named_leaves, quoted
from jaxprune.selection import count


@dataclass(frozen=True)
class Layer:
    """One leaf of the params, or a sum of several.

    Attributes:
      path: its name.
      shape: None for a sum.
      kept: how many weights have a mask that is True, or none at all.
      total: how many weights there are.
      target_kept: how many the target keeps; None where it says nothing.
      outside: how many are not zero although their mask is False.
      flops: FLOPs of one call in products that read the leaf; None without `apply_fn`.
      sparse_flops: flops * kept / total.
    """

    path: str
    shape: tuple[int, ...] | None
    kept: int
    total: int
    target_kept: int | None = None
    outside: int = 0
    flops: int | None = None
    sparse_flops: int | None = None

    @property
    def sparsity(self) -> float:
        """The fraction pruned."""
        return (self.total - self.kept) / max(self.total, 1)

    @property
    def target(self) -> float | None:
        """The fraction that the target prunes, counted in whole weights."""
        if self.target_kept is None:
            return None
        return (self.total - self.target_kept) / max(self.total, 1)

    def to_dict(self) -> dict[str, Any]:
        shape = None if self.shape is None else list(self.shape)
        rates = {"sparsity": self.sparsity, "target": self.target}
        return {**asdict(self), "shape": shape, **rates}


@dataclass(frozen=True, repr=False)
class Report:
    """What `report` returns. Its `repr` is a table; see also `to_dict` and `plot`.

    Attributes:
      layers: a `Layer` for each prunable leaf, in the order of the params.
      never_pruned: a `Layer` for each other leaf of floats.
      prunable: the sum of `layers`.
      total: the sum of both; its FLOPs are those of the whole call.
      other_flops: FLOPs in products that read no leaf (attention scores); None without `apply_fn`.
      notes: what else there is to say about the numbers.
    """

    layers: tuple[Layer, ...]
    never_pruned: tuple[Layer, ...]
    prunable: Layer
    total: Layer
    other_flops: int | None
    notes: tuple[str, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is wrong: layers that keep no weight, weights outside their mask."""
        dead = [(layer.path, None) for layer in self.layers if layer.total and not layer.kept]
        leaky = [(layer.path, None) for layer in self.layers if layer.outside]
        found = []
        if dead:
            found.append(
                f"{quoted(dead)}: no weight at all is kept, so the layer is dead. Lower the "
                "sparsity, exempt the layer with per_layer or prunable=..., or use lamp scores."
            )
        if leaky:
            found.append(
                f"{quoted(leaky)}: {self.prunable.outside:,} weights are not zero where their mask "
                "is False. Is sparsify last in the optax.chain? Of params that no mask was "
                "applied to yet, report(apply_masks(params, masks), masks)."
            )
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """All of it in dicts, lists, strings and numbers, as JSON takes them."""
        return {
            "layers": [layer.to_dict() for layer in self.layers],
            "never_pruned": [layer.to_dict() for layer in self.never_pruned],
            "prunable": self.prunable.to_dict(),
            "total": self.total.to_dict(),
            "other_flops": self.other_flops,
            "warnings": list(self.warnings),
            "notes": list(self.notes),
        }

    def plot(self, ax: Any = None) -> Any:
        """The density of each layer as a bar, its target as a mark: a matplotlib `Figure`.

        Args:
          ax: matplotlib axes to draw into, or None for a figure of its own.

        Raises:
          ImportError: without matplotlib.
        """
        return rendering.density_bars(self, ax)

    def __repr__(self) -> str:
        return rendering.table(self)


def report(
    params: Params,
    masks: Masks,
    apply_fn: Callable[..., Any] | None = None,
    *inputs: Any,
    target: Sparsities | Sparsity | None = None,
) -> Report:
    """Kept weights, targets and FLOPs of each layer and of all: a `Report`, which prints as a table.

    The FLOPs are those of the matrix products and convolutions (`jaxprune.flops`). Sparse FLOPs
    are what a kernel that skips zeros would do; masks only simulate that, and make nothing faster.

    Args:
      params: pytree of arrays. A leading axis of seeds is an axis as any other: counts are sums.
      masks: like the params, bool, None where never pruned.
      apply_fn: `(params, *inputs) -> Any`, to count FLOPs: traced on shapes, never run.
      *inputs: example inputs of `apply_fn`; arrays or `jax.ShapeDtypeStruct`.
      target: the sparsities that were asked for, as an allocation returns them (floats are
        fractions, ints numbers of weights), or one number for all prunable weights together.

    Raises:
      ValueError: if masks or target belong to other params, a target is no sparsity, or every mask
        is None.
      TypeError: if a mask is not bool, or values are not known, as under `jit`.

    Warns:
      UserWarning: if a layer keeps no weight, or weights are not zero where their mask is False.

    >>> params = {'Dense_0': {'kernel': jnp.array([[3., 0.], [0., -4.]]), 'bias': jnp.ones(2)}}
    >>> masks = {'Dense_0': {'kernel': params['Dense_0']['kernel'] != 0, 'bias': None}}
    >>> report(params, masks, target=0.5)
    """
    aligned = zip(named_leaves(params), named_leaves(like(masks, params)), strict=True)
    leaves = [(path, leaf, mask) for (path, leaf), (_, mask) in aligned if leaf is not None]
    masked = {path: (leaf, mask) for path, leaf, mask in leaves if mask is not None}
    _check(masked)
    ...
