"""Sparsity-informed adaptive pruning: how much to prune is read off the weights themselves."""

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
from jaxprune.masks import all_kept, own_masks, with_own
from jaxprune.prunable.layers import folded, split_like
from jaxprune.prunable.rules import check_any, kernels
from jaxprune.scores import magnitude
from jaxprune.selection.counting import n_true, portion
from jaxprune.selection.deferred import defer
from jaxprune.selection.drop_grow import among, drop
from jaxprune.selection.largest import largest
from jaxprune.trees import map_named, map_scored
from jaxprune.uncut import counts_of, in_order, uncut

# Relative: a bound that is whole may come out a little higher. Powers in float32 are right to 6e-8
# each, and what they miss cancels out over many weights; their sum has 46 bits.
_TOLERANCE = 2.0**-30


def pq_index(weights: Any, p: float = 0.5, q: float = 1.0, masks: Any = None) -> jax.Array:
    """How unequal the kept weights are: 0 if all are alike, near 1 if few are all; float32 scalar.

        I = 1 - d^(1/q - 1/p) ||w||_p / ||w||_q = 1 - M_p / M_q,    M_p = (mean |w|^p)^(1/p)

    with d the number of weights that the masks keep.

    Args:
      weights: an array, or a pytree whose leaves are taken together; None leaves do not count.
      p, q: 0 < p <= 1 <= q, and not both 1.
      masks: like the weights, bool; by default all are kept. Weights all zero, or none, give 0;
        a kept one that is inf or nan gives nan.

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
    kept = map_scored(lambda _, mask: mask, weights, masks)
    return _index(jax.tree.leaves(weights), jax.tree.leaves(kept), p, q)


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
    """Prunes the smallest weights, as many as the PQ index of those that are left allows.

        m = ceil(d (1 + eta)^(-q / (q - p)) (1 - I)^(p q / (q - p)))   to be kept, at least
          = ceil(  (1 + eta)^(-q / (q - p)) S_p (S_p / S_q)^(p / (q - p))),   S_p = sum |w|^p
        c = floor(d min(max(gamma (1 - m / d), 0), beta))              to be pruned, of d

    Where a kept weight is inf or nan there is no index, and nothing is pruned.

    Each leaf decides for itself; with `axis` each slice along it, such as the weights into a
    neuron; or all leaves `together`. Counts are exact, ties go to the lower flat index.

    One update is one phase: use it in `iterative`, or in `every(n, sap(...))`.

    Args:
      p, q: of the index; 0 < p <= 1 <= q, and not both 1.
      eta: the larger, the fewer must be kept.
      gamma: scales what is pruned; `beta` in [0, 1] is the most of d.
      axis: of output features, -1 in flax.
      together: one index and one threshold for all leaves.
      prunable: `params -> params` with None in place of what is never pruned.

    Raises:
      ValueError: if an argument is out of range, `axis` and `together` are both given; (in update)
        if a leaf has no such axis.

    Reference: Diao et al., 2023, Pruning Deep Neural Networks from a Sparsity Perspective. Its code
    compares with the value of a pivot, so that ties change the count; here counts are exact, where
    p / (q - p) is whole, as in the paper's two pairs; else m is right to 1e-7.
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
        # where all are zero they are alike, and I = 0
        alike = times(factor, two_floats(d.astype(jnp.float32)))
        bound = TwoFloats(*(jnp.where(some, a, b) for a, b in zip(bound, alike, strict=True)))
        m = jnp.clip(ceiling(bound, _TOLERANCE), 1, jnp.maximum(d, 1))
        spare, whole = jnp.maximum(d - m, 0), int(gamma)
        # no product reaches 2**31: more than that many are never pruned
        wanted = whole * jnp.minimum(spare, (2**31 - 1) // max(whole, 1))
        most = portion(beta, d)
        c = jnp.minimum(jnp.minimum(wanted, most) + portion(gamma - whole, spare), most)
        return jnp.where(jnp.isfinite(of_q.high), c, 0)

    def of_slice(w: jax.Array, mask: jax.Array) -> jax.Array:
        return count([_size(w, mask)], n_true(mask)[0])

    def of_each(sizes: Params, counts: Any) -> Any:
        leaves, treedef = jax.tree.flatten(sizes)
        groups, d = uncut(leaves), jnp.stack(jax.tree.leaves(counts))
        of_layers = jax.vmap(lambda x, d: count([x], d))
        found = [of_layers(own.in_a_row(), d[np.array(own.places)]) for own in groups]
        return jax.tree.unflatten(treedef, list(in_order(groups, found)))

    def along_axis(leaf_name: str, w: jax.Array, mask: jax.Array) -> jax.Array:
        assert axis is not None
        if not -w.ndim <= axis < w.ndim:
            raise ValueError(
                f"sap: '{leaf_name}' of shape {w.shape} has no axis {axis}. Choose another, or "
                "leave it out with prunable=..."
            )
        slices = lambda x: jnp.moveaxis(x, axis, 0)
        n = jax.vmap(of_slice)(slices(w), slices(mask))
        kept = jax.vmap(drop)(slices(mask), slices(jnp.abs(w)), n)
        return jnp.moveaxis(kept, 0, axis)

    def update(state: MaskState, params: Params, **_: Any) -> MaskState:
        masks = own_masks(state.masks, params, prunable)
        own = split_like(params, masks, deferred=True)
        if axis is not None:
            kept = map_named(along_axis, *jax.tree.map(jnp.asarray, (own, masks)))
            return MaskState(with_own(state.masks, kept))
        sizes, counts = defer(partial(map_scored, _size), own, masks), counts_of(masks)
        if together:
            d = jnp.stack(jax.tree.leaves(counts)).sum()
            left = d - count([jnp.asarray(x) for x in jax.tree.leaves(sizes)], d)
            scores, treedef = jax.tree.flatten(
                defer(lambda own, masks: among(masks, magnitude(own)), own, masks)
            )
            kept = jax.tree.unflatten(treedef, largest(scores, left, together=True))
        else:
            kept = drop(masks, defer(magnitude, own), of_each(sizes, counts))
        return MaskState(with_own(state.masks, kept))

    return MaskTransform(init, update)


def _index(weights: list[Any], kept: list[Any], p: float, q: float) -> jax.Array:
    """The PQ index of all kept weights together; 0 where there are none, or all are zero."""
    d = jnp.stack([n_true(m)[0] for m in kept]).sum().astype(jnp.float32)
    sizes = [_size(w, m) for w, m in zip(weights, kept, strict=True)]
    of_p, of_q = (
        (sums.high / jnp.maximum(d, 1)) ** (1 / norm)
        for sums, norm in zip(_sums(sizes, p, q), (p, q), strict=True)
    )
    return jnp.where(of_q == 0, 0.0, 1 - of_p / jnp.where(of_q == 0, 1.0, of_q))  # a nan stays one


def _size(w: jax.Array, mask: jax.Array) -> jax.Array:
    """|w|, float32, zero where it is not kept."""
    return jnp.where(mask, jnp.abs(w).astype(jnp.float32), 0)


def _sums(sizes: list[Any], *norms: float) -> list[TwoFloats]:
    """Of each norm the sum of |w / unit|^norm over all these together, |w| given.

    The unit is the largest, so that no power leaves float32; the index knows none.
    """
    largest_of_all = jnp.stack([x.max(initial=0.0) for x in sizes]).max()
    unit = jnp.where(largest_of_all > 0, largest_of_all, 1.0)
    return [reduce(plus, [total((x / unit) ** norm) for x in sizes]) for norm in norms]


def _check_norms(p: Any, q: Any) -> None:
    if not (0 < p <= 1 <= q and p < q):
        raise ValueError(f"the PQ index needs 0 < p <= 1 <= q and p < q; got p={p!r}, q={q!r}.")
