"""Arrays that are never stored: they are recomputed wherever they are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.interpreters import partial_eval


class Deferred:
    """An array that is recomputed wherever it is read, and never stored.

    `jnp.asarray` computes it; `shape`, `dtype`, `size` and `ndim` are known.
    """

    def __init__(self, compute: Callable[..., jax.Array], operands: tuple, aval: Any):
        self.compute, self.operands, self.aval = compute, operands, aval
        self.shape, self.dtype = aval.shape, aval.dtype
        self.size, self.ndim = math.prod(aval.shape), len(aval.shape)

    def __jax_array__(self) -> jax.Array:
        return self.compute(*self.operands)


class Place(NamedTuple):
    """The place of a layer in its stack: stacked axes, ascending, their sizes, the index `at`."""

    axes: tuple[int, ...]
    sizes: tuple[int, ...]
    at: tuple[int, ...]


class Layer(Deferred):
    """One layer of a stack, deferred: a function of all layers can run once on the stack.

    Attributes:
      stack: an array, or a `Deferred`; all layers of a stack have the same object.
      place: of the layer in it.
    """

    def __init__(self, stack: Any, place: Place, layer: Deferred):
        super().__init__(layer.compute, layer.operands, layer.aval)
        self.stack, self.place = stack, place


def taken(leaf: Any, axes: tuple[int, ...], index: Sequence[Any]) -> Any:
    """The layer at this index of the stacked axes."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        rest = [n for axis, n in enumerate(leaf.shape) if axis not in axes]
        return jax.ShapeDtypeStruct(tuple(rest), leaf.dtype)
    for axis, i in sorted(zip(axes, index, strict=True), reverse=True):
        leaf = lax.index_in_dim(leaf, int(i), axis, keepdims=False)
    return leaf


def cut(stack: jax.Array, axes: Sequence[int], sizes: Sequence[int]) -> list[Layer]:
    """The layers of a stack, in the order of `np.ndindex(sizes)`; nothing is copied."""
    order = np.argsort(axes).tolist()
    ascending = lambda values: tuple(int(values[i]) for i in order)
    axes, sizes, indices = ascending(axes), ascending(sizes), [*np.ndindex(*sizes)]
    aval = jax.eval_shape(partial(taken, axes=axes, index=(0,) * len(axes)), stack)

    def layer(index: tuple[int, ...]) -> Layer:
        alone = Deferred(partial(taken, axes=axes, index=index), (stack,), aval)
        return Layer(stack, Place(axes, sizes, index), alone)

    return [layer(ascending(index)) for index in indices]


def stacked_places(layers: Sequence[Layer]) -> list[int] | None:
    """The order in which these are all layers of one stack; None if they are not."""
    first = layers[0]
    at = {x.place.at: i for i, x in enumerate(layers)}
    indices = [*np.ndindex(first.place.sizes)]
    is_stack = (
        all(x.stack is first.stack and x.place[:2] == first.place[:2] for x in layers)
        and len(layers) == len(indices)
        and at.keys() == set(indices)
    )
    return [at[index] for index in indices] if is_stack else None


# Recomputing these in each of some fifteen passes is cheaper than one write of their result.
_ELEMENTWISE = {
    "abs", "add", "broadcast_in_dim", "convert_element_type", "copy", "div", "eq", "ge", "gt",
    "integer_pow", "is_finite", "jit", "le", "lt", "max", "min", "mul", "ne", "neg", "not", "and",
    "or", "pjit", "select_n", "sign", "slice", "sqrt", "square", "squeeze", "stop_gradient", "sub",
}  # fmt: skip


def _is_elementwise(jaxpr: Any) -> bool:
    return all(
        str(eqn.primitive) in _ELEMENTWISE
        and all(_is_elementwise(inner.jaxpr) for inner in eqn.params.values() if _is_jaxpr(inner))
        for eqn in jaxpr.eqns
    )


def _is_jaxpr(param: Any) -> bool:
    return isinstance(param, ClosedJaxpr)


def defer(f: Callable[..., Any], *args: Any) -> Any:
    """`f(*args)`, a pytree of arrays, with `Deferred` leaves wherever these are cheap to recompute.

    A leaf is deferred if it is computed elementwise from the arrays in `args`. A leaf that needs
    more (a sort, a sum, random bits) is an ordinary array. `args` may have deferred leaves too.
    """
    operands = jax.tree.leaves(args)
    known = jax.tree.map(lambda x: x.aval if isinstance(x, Deferred) else x, args)
    closed, shapes = jax.make_jaxpr(f, return_shape=True)(*known)
    avals, treedef = jax.tree.flatten(shapes)
    each = range(len(avals))
    parts = [partial_eval.dce_jaxpr(closed.jaxpr, [i == j for j in each]) for i in each]
    is_cheap = [_is_elementwise(jaxpr) for jaxpr, _ in parts]
    # for the other leaves; the compiler removes the rest
    computed = avals if all(is_cheap) else jaxpr_as_fun(closed)(*map(jnp.asarray, operands))

    read = [[x for x, is_used in zip(operands, used, strict=True) if is_used] for _, used in parts]

    def alone(index: int) -> Any:
        if not is_cheap[index]:
            return computed[index]
        compute = jaxpr_as_fun(ClosedJaxpr(parts[index][0], closed.consts))
        return _composed(lambda *xs: compute(*xs)[0], read[index], avals[index])

    leaves = [alone(index) for index in each]
    for alike in _alike([jaxpr for jaxpr, _ in parts], read, is_cheap, avals):
        compute = jaxpr_as_fun(ClosedJaxpr(parts[alike[0]][0], closed.consts))
        stack = _of_stacks(lambda *xs, f=compute: f(*xs)[0], read[alike[0]])
        for index in alike:
            place = _place(read[index])
            assert place is not None
            leaves[index] = Layer(stack, place, leaves[index])
    return jax.tree.unflatten(treedef, leaves)


def _composed(compute: Callable[..., jax.Array], operands: Sequence[Any], aval: Any) -> Deferred:
    """`compute(*operands)`, deferred; operands may be deferred too."""
    flat = [x.operands if isinstance(x, Deferred) else (x,) for x in operands]

    def recomputed(*xs: jax.Array) -> jax.Array:
        rest = iter(xs)
        values = [[next(rest) for _ in group] for group in flat]
        pairs = zip(operands, values, strict=True)
        return compute(*(x.compute(*v) if isinstance(x, Deferred) else v[0] for x, v in pairs))

    return Deferred(recomputed, tuple(x for group in flat for x in group), aval)


def _alike(
    jaxprs: Sequence[Any], read: Sequence[Sequence[Any]], is_cheap: Sequence[bool], avals: Any
) -> list[list[int]]:
    """Groups of results that are one function of all layers of the same stacks."""
    groups: dict[Any, dict[tuple[int, ...], int]] = {}
    for index, (jaxpr, operands) in enumerate(zip(jaxprs, read, strict=True)):
        place = _place(operands) if is_cheap[index] else None
        if place is None or _hides_arrays(jaxpr):
            continue
        layers = [x for x in operands if isinstance(x, Layer)]
        if any(x.shape != avals[index].shape for x in layers):
            continue
        of = tuple(id(x.stack) if isinstance(x, Layer) else id(x) for x in operands)
        # two jaxprs that compute the same print the same
        groups.setdefault((str(jaxpr), of, place[:2]), {})[place.at] = index
    return [
        list(group.values())
        for (_, _, (_, sizes)), group in groups.items()
        if len(group) == math.prod(sizes)
    ]


def _place(operands: Sequence[Any]) -> Place | None:
    """The place of the layers that are read, if all have the same."""
    places = {x.place for x in operands if isinstance(x, Layer)}
    return places.pop() if len(places) == 1 else None


def _hides_arrays(jaxpr: Any) -> bool:
    """Whether a jaxpr has arrays inside that its text does not show."""
    literals = [x for eqn in jaxpr.eqns for x in eqn.invars if hasattr(x, "val")]
    inner = [x for eqn in jaxpr.eqns for x in eqn.params.values() if _is_jaxpr(x)]
    return any(np.ndim(x.val) for x in literals) or any(
        x.consts or _hides_arrays(x.jaxpr) for x in inner
    )


def _of_stacks(f: Callable[..., jax.Array], operands: Sequence[Any]) -> Deferred:
    """`f`, a function of layers, applied to their stacks."""
    place = _place(operands)
    assert place is not None
    is_layer = [isinstance(x, Layer) for x in operands]
    for axis in place.axes:
        f = jax.vmap(f, [axis if batched else None for batched in is_layer], axis)
    stacks = [x.stack if isinstance(x, Layer) else x for x in operands]
    known = [x.aval if isinstance(x, Deferred) else x for x in stacks]
    return _composed(f, stacks, jax.eval_shape(f, *known))


def written(tree: Any) -> Any:
    """`tree` with arrays in place of deferred leaves, and layers of arrays in place of layers."""
    stacks: dict[int, jax.Array] = {}

    def leaf(x: Any) -> Any:
        if not isinstance(x, Layer):
            return jnp.asarray(x) if isinstance(x, Deferred) else x
        if id(x.stack) not in stacks:
            stacks[id(x.stack)] = jnp.asarray(x.stack)
        stack, (axes, _, index) = stacks[id(x.stack)], x.place
        alone = Deferred(partial(taken, axes=axes, index=index), (stack,), x.aval)
        return Layer(stack, x.place, alone)

    return jax.tree.map(leaf, tree)


def read_anew(leaves: Sequence[Any], thresholds: Any) -> tuple[list[jax.Array], Any]:
    """The leaves as arrays, computed after `thresholds`: XLA can't hoist them out of a loop."""
    operands = [x.operands if isinstance(x, Deferred) else (x,) for x in leaves]
    # each once: several layers may read one stack
    each = {id(x): x for group in operands for x in group}
    # a list: JAX sorts the keys of a dict, and the order of ids differs from trace to trace
    values, thresholds = lax.optimization_barrier(([*each.values()], thresholds))
    each = dict(zip(each, values, strict=True))
    arrays = [
        x.compute(*(each[id(y)] for y in group)) if isinstance(x, Deferred) else each[id(group[0])]
        for x, group in zip(leaves, operands, strict=True)
    ]
    return arrays, thresholds
