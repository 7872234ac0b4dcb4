"""Sparsity-informed adaptive pruning: the weights say how many of them are pruned."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import MaskState, MaskTransform, Params
from jaxprune.exact.two_floats import (
    TwoFloats,
    ceiling,
    over,
    plus,
    power,
    times,
    total,
    two_floats,
)
from jaxprune.masks import all_kept, merged, prunable_parts
from jaxprune.prunable.layers import folded
from jaxprune.prunable.rules import check_any, kernels
from jaxprune.scores import magnitude
from jaxprune.selection.counting import n_true, portion
from jaxprune.selection.deferred import defer
from jaxprune.selection.drop_grow import among, drop
from jaxprune.selection.largest import largest
from jaxprune.selection.uncut import counts_of, in_order, uncut
from jaxprune.trees import map_named, map_scored

# Relative: a bound that is an integer may come out a little higher. Each power in float32 is right
# to 6e-8, and over many weights these errors cancel; their sum has 46 bits.
_TOLERANCE = 2.0**-30


def pq_index(weights: Any, p: float = 0.5, q: float = 1.0, masks: Any = None) -> jax.Array:
    """How unequal the kept weights are: 0 if all are equal, near 1 if few hold all; float32 scalar.

        I = 1 - d^(1/q - 1/p) ||w||_p / ||w||_q = 1 - M_p / M_q,    M_p = (mean |w|^p)^(1/p)

    d is the number of weights that the masks keep.

    Args:
      weights: an array, or a pytree whose leaves are taken together; None leaves do not count.
      p, q: 0 < p <= 1 <= q, and not both 1.
      masks: like the weights, bool; by default all are kept. If all weights are zero, or there are
        none, the index is 0; if a kept weight is inf or nan, it is nan.

    Raises:
      ValueError: if p and q are out of range.

    Reference: Diao et al., 2023, Pruning Deep Neural Networks from a Sparsity Perspective.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> float(jp.tickets.pq_index(jnp.array([1., 0., 0., 0.]), p=1, q=2))
    0.5
    """
    _check_norms(p, q)
    if masks is None:
        masks = jax.tree.map(lambda w: jnp.ones(jnp.shape(w), bool), weights)
    masks = map_scored(lambda _, mask: mask, weights, masks)
    return _index(jax.tree.leaves(weights), jax.tree.leaves(masks), p, q)


def sap(
    p: float = 0.5,
    q: float = 1.0,
    eta: float = 0.0,
    gamma: float = 1.0,
    beta: float = 0.9,
    axis: int | None = None,
    together: bool = False,
    prunable: Callable[[Params], Params] = kernels,
) -> MaskTransform:
    """Prunes the smallest weights, as many as the PQ index of the kept weights allows.

        m = ceil(d (1 + eta)^(-q / (q - p)) (1 - I)^(p q / (q - p)))   at least m stay
          = ceil(  (1 + eta)^(-q / (q - p)) S_p (S_p / S_q)^(p / (q - p))),   S_p = sum |w|^p
        c = floor(d min(max(gamma (1 - m / d), 0), beta))              c of d are pruned

    Where a kept weight is inf or nan there is no index, and nothing is pruned.

    There is one index for each leaf; with `axis` for each slice along it, such as the weights into
    a neuron; or for all leaves `together`. Counts are exact, ties go to the lower flat index.

    One update is one phase: use it in `tickets.iterative`, or in `every(n, sap(...))`.

    Args:
      p, q: of the index; 0 < p <= 1 <= q, and not both 1.
      eta: the larger, the fewer weights must stay.
      gamma: scales the number pruned; `beta` in [0, 1] is the largest fraction of d.
      axis: the axis of output features, -1 in flax.
      together: one index and one threshold for all leaves.
      prunable: `params -> params` with None in place of what is never pruned.

    Raises:
      ValueError: if an argument is out of range, `axis` and `together` are both given; (in update)
        if a leaf has no such axis.

    Reference: Diao et al., 2023, Pruning Deep Neural Networks from a Sparsity Perspective. Its code
    compares with the value of a pivot, so that ties change the count. Here counts are exact where
    p / (q - p) is an integer, as in the paper's two pairs; else m is right to 1e-7.
    """
    _check_norms(p, q)
    if not (eta > -1 and gamma >= 0 and 0 <= beta <= 1):
        raise ValueError(
            f"sap needs eta > -1, gamma >= 0 and beta in [0, 1]; got eta={eta!r}, "
            f"gamma={gamma!r}, beta={beta!r}."
        )
    if axis is not None and together:
        raise ValueError("sap decides by slices along an axis, or for all together; not both.")

    def init(params: Params) -> MaskState:
        chosen = prunable(params)
        check_any(chosen, params)
        return MaskState(folded(all_kept(chosen)))

    factor = two_floats(float((1 + eta) ** (-q / (q - p))))

    def count(sizes: list[Any], d: jax.Array) -> jax.Array:
        """c, int32, in integers from m on."""
        of_p, of_q = _sums(sizes, p, q)
        some = of_q.high > 0
        ratio = over(of_p, TwoFloats(jnp.where(some, of_q.high, 1.0), of_q.low))
        bound = times(factor, times(of_p, power(ratio, p / (q - p))))
        # if all are zero they are equal, and I = 0
        equal = times(factor, two_floats(d.astype(jnp.float32)))
        bound = TwoFloats(*(jnp.where(some, a, b) for a, b in zip(bound, equal, strict=True)))
        m = jnp.clip(ceiling(bound, _TOLERANCE), 1, jnp.maximum(d, 1))
        spare, times_spare = jnp.maximum(d - m, 0), int(gamma)
        # no product reaches 2**31: more than that many are never pruned
        wanted = times_spare * jnp.minimum(spare, (2**31 - 1) // max(times_spare, 1))
        most = portion(beta, d)
        c = jnp.minimum(jnp.minimum(wanted, most) + portion(gamma - times_spare, spare), most)
        return jnp.where(jnp.isfinite(of_q.high), c, 0)

    def of_slice(w: jax.Array, mask: jax.Array) -> jax.Array:
        return count([_size(w, mask)], n_true(mask)[0])

    def of_each(sizes: Params, counts: Any) -> Any:
        leaves, treedef = jax.tree.flatten(sizes)
        groups, d = uncut(leaves), jnp.stack(jax.tree.leaves(counts))
        of_layers = jax.vmap(lambda x, d: count([x], d))
        c = [of_layers(group.in_a_row(), d[np.array(group.places)]) for group in groups]
        return jax.tree.unflatten(treedef, list(in_order(groups, c)))

    def along_axis(leaf_name: str, w: jax.Array, mask: jax.Array) -> jax.Array:
        assert axis is not None
        if not -w.ndim <= axis < w.ndim:
            raise ValueError(
                f"sap: '{leaf_name}' of shape {w.shape} has no axis {axis}. Choose another, or "
                "leave it out with prunable=..."
            )
        slices = lambda x: jnp.moveaxis(x, axis, 0)
        n = jax.vmap(of_slice)(slices(w), slices(mask))
        return jnp.moveaxis(jax.vmap(drop)(slices(mask), slices(jnp.abs(w)), n), 0, axis)

    def update(state: MaskState, params: Params, **_: Any) -> MaskState:
        masks, weights, _ = prunable_parts(prunable, state.masks, params)
        if axis is not None:
            new = map_named(along_axis, *jax.tree.map(jnp.asarray, (weights, masks)))
            return MaskState(merged(state.masks, new))
        sizes, counts = defer(partial(map_scored, _size), weights, masks), counts_of(masks)
        if together:
            d = jnp.stack(jax.tree.leaves(counts)).sum()
            left = d - count([jnp.asarray(x) for x in jax.tree.leaves(sizes)], d)
            ranked = defer(lambda w, m: among(m, magnitude(w)), weights, masks)
            scores, treedef = jax.tree.flatten(ranked)
            new = jax.tree.unflatten(treedef, largest(scores, left, together=True))
        else:
            new = drop(masks, defer(magnitude, weights), of_each(sizes, counts))
        return MaskState(merged(state.masks, new))

    return MaskTransform(init, update)


def _index(weights: list[Any], masks: list[Any], p: float, q: float) -> jax.Array:
    """The PQ index of all kept weights together; 0 where there are none, or all are zero."""
    d = jnp.stack([n_true(m)[0] for m in masks]).sum().astype(jnp.float32)
    sizes = [_size(w, m) for w, m in zip(weights, masks, strict=True)]
    of_p, of_q = (
        (sums.high / jnp.maximum(d, 1)) ** (1 / norm)
        for sums, norm in zip(_sums(sizes, p, q), (p, q), strict=True)
    )
    return jnp.where(of_q == 0, 0.0, 1 - of_p / jnp.where(of_q == 0, 1.0, of_q))  # a nan stays one


def _size(w: jax.Array, mask: jax.Array) -> jax.Array:
    """|w|, float32, zero where the mask is False."""
    return jnp.where(mask, jnp.abs(w).astype(jnp.float32), 0)


def _sums(sizes: list[Any], *norms: float) -> list[TwoFloats]:
    """For each norm the sum of |w / unit|^norm over all sizes |w|.

    The unit is the largest |w|, so that no power overflows float32; it cancels out of the index.
    """
    largest_of_all = jnp.stack([x.max(initial=0.0) for x in sizes]).max()
    unit = jnp.where(largest_of_all > 0, largest_of_all, 1.0)
    return [reduce(plus, [total((x / unit) ** norm) for x in sizes]) for norm in norms]


def _check_norms(p: Any, q: Any) -> None:
    if not (0 < p <= 1 <= q and p < q):
        raise ValueError(f"the PQ index needs 0 < p <= 1 <= q and p < q; got p={p!r}, q={q!r}.")
