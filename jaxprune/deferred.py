"""Arrays that are never written: recomputed wherever they are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.interpreters import partial_eval


class Deferred:
    """An array that is recomputed wherever it is read, so that no copy of it is ever stored.

    `jnp.asarray` computes it; `shape`, `dtype`, `size` and `ndim` are known.
    """

    def __init__(self, compute: Callable[..., jax.Array], operands: tuple, aval: Any):
        self.compute, self.operands, self.aval = compute, operands, aval
        self.shape, self.dtype = aval.shape, aval.dtype
        self.size, self.ndim = math.prod(aval.shape), len(aval.shape)

    def __jax_array__(self) -> jax.Array:
        return self.compute(*self.operands)


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

    A leaf is deferred if it is computed elementwise from the arrays in `args`; where there is
    more to it (a sort, a sum, random bits) the leaf is an ordinary array. `args` may have deferred
    leaves too.
    """
    operands = jax.tree.leaves(args)
    known = jax.tree.map(lambda x: x.aval if isinstance(x, Deferred) else x, args)
    closed, shapes = jax.make_jaxpr(f, return_shape=True)(*known)
    avals, treedef = jax.tree.flatten(shapes)
    each = range(len(avals))
    parts = [partial_eval.dce_jaxpr(closed.jaxpr, [i == j for j in each]) for i in each]
    is_cheap = [_is_elementwise(own) for own, _ in parts]
    # only for what is not; the compiler leaves out the rest
    computed = avals if all(is_cheap) else jaxpr_as_fun(closed)(*map(jnp.asarray, operands))

    def leaf(index: int) -> Any:
        if not is_cheap[index]:
            return computed[index]
        own, used = parts[index]
        compute = jaxpr_as_fun(ClosedJaxpr(own, closed.consts))
        kept = [x for x, is_used in zip(operands, used, strict=True) if is_used]
        flat = [x.operands if isinstance(x, Deferred) else (x,) for x in kept]

        def recomputed(*xs: jax.Array) -> jax.Array:
            rest = iter(xs)
            values = [[next(rest) for _ in own] for own in flat]
            pairs = zip(kept, values, strict=True)
            return compute(*(x.compute(*v) if isinstance(x, Deferred) else v[0] for x, v in pairs))[
                0
            ]

        return Deferred(recomputed, tuple(x for own in flat for x in own), avals[index])

    return jax.tree.unflatten(treedef, [leaf(index) for index in each])


def read_anew(leaves: Sequence[Any], thresholds: Any) -> tuple[list[jax.Array], Any]:
    """The leaves as arrays, computed after `thresholds`: XLA can't hoist them out of a loop."""
    operands = [x.operands if isinstance(x, Deferred) else (x,) for x in leaves]
    # each once: layers may be read from one stack
    each = {id(x): x for own in operands for x in own}
    each, thresholds = lax.optimization_barrier((each, thresholds))
    arrays = [
        x.compute(*(each[id(y)] for y in own)) if isinstance(x, Deferred) else each[id(own[0])]
        for x, own in zip(leaves, operands, strict=True)
    ]
    return arrays, thresholds
