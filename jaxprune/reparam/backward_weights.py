"""Other weights in the backward pass: the same products, and other gradients of their inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.base import Params
from jaxprune.programs.interpret import CALLS, bind, line_of, programs, scan_parts, walk
from jaxprune.programs.primitives import sides
from jaxprune.trees import present_leaves, quoted, shape_only

# equations whose results have the entries of the first operand, or some of them, in other places
PLACES = (
    *("reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "rev"),
    *("slice", "dynamic_slice", "split"),
    *("convert_element_type", "copy", "sharding_constraint", "reduce_precision"),
)
REMATERIALIZED = ("remat", "remat2", "checkpoint")


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("forward", "backward"),
    meta_fields=("name",),
)
@dataclass(frozen=True)
class Weight:
    """A weight, and the one that stands in its place in the backward pass.

    Attributes:
      name: of the leaf.
      forward, backward: arrays of one shape and dtype.
    """

    name: str
    forward: Any
    backward: Any


@dataclass
class _Met:
    """The leaves that products read, and by leaf the other equations that read it."""

    products: set[str] = field(default_factory=set)
    others: dict[str, str] = field(default_factory=dict)


def backward_weights(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` with other weights in the gradients of its products' inputs.

        network = backward_weights(fn)
        network(params, backward, *args)        # = fn(params, *args)

        y = product(x, w)     dx = product's transpose of (dy, backward)     dw = as ever

    The program of `fn` is read. Each product of a leaf that has a weight in `backward` gets the
    gradient above: matrices, convolutions of any kind, attention, experts, `einsum`; also within
    `jit`, `scan`, `cond` and `remat`. All other equations that read the leaf, and all gradients of
    the leaf itself, are those of `fn`. `backward` gets no gradient.

    With N:M masks of the outputs it is `bdwp`; with random weights that never learn it is feedback
    alignment (Lillicrap et al., 2016, Random synaptic feedback weights support error
    backpropagation for deep learning).

    Args:
      fn: `(params, *args) -> Any`, of arrays: a network or a loss.

    Returns:
      `(params, backward, *args) -> Any`, for `jit`, `vmap` and `grad`; not for forward-mode
      derivatives. `backward` is like `params`, and None where a leaf is used in both passes.

    Raises:
      ValueError: (when called) if `backward` has other leaves than `params`, other shapes or other
        dtypes; or if no product reads a leaf of it: it is read within a `while_loop`, a
        `shard_map` or a function with a derivative of its own, or is changed before the product.

    >>> import jax, jax.numpy as jnp, jaxprune as jp
    >>> network = jp.reparam.backward_weights(lambda params, x: (x @ params['w']).sum())
    >>> w, other = {'w': jnp.ones((2, 3))}, {'w': jnp.full((2, 3), 5.0)}
    >>> network(w, other, jnp.array([1.0, 2.0]))
    Array(9., dtype=float32)
    >>> jax.grad(network, argnums=2)(w, other, jnp.array([1.0, 2.0]))
    Array([15., 15.], dtype=float32)
    """

    def network(params: Params, backward: Params, *args: Any) -> Any:
        others = dict(present_leaves(backward))
        leaves = dict(present_leaves(params))
        _check(leaves, others)
        try:
            shapes = jax.tree.map(shape_only, params)
            program, result = jax.make_jaxpr(fn, return_shape=True)(shapes, *args)
        except Exception as error:
            error.add_note("backward_weights: the function does not take these params and args")
            raise
        still = {name: lax.stop_gradient(jnp.asarray(x)) for name, x in others.items()}
        operands = [
            Weight(name, jnp.asarray(x), still[name]) if name in still else x
            for name, x in leaves.items()
        ]
        met = _Met()
        results = _run(program, [*operands, *jax.tree.leaves(args)], met)
        _check_met(met, still)
        return jax.tree.unflatten(jax.tree.structure(result), results)

    return network


def _run(program: Any, operands: list[Any], met: _Met) -> list[Any]:
    """The results of a program, of arrays; operands may be a `Weight`."""
    return [_forward(x) for x in _read(program, operands, met)]


def _read(program: Any, operands: list[Any], met: _Met) -> list[Any]:
    equation = lambda eqn, values: _equation(eqn, values, met)
    return walk(program, operands, equation, lambda x, atom: x)


def _forward(value: Any) -> Any:
    return value.forward if isinstance(value, Weight) else value


def _equation(eqn: Any, values: list[Any], met: _Met) -> list[Any]:
    places = [i for i, value in enumerate(values) if isinstance(value, Weight)]
    kind, params = eqn.primitive.name, eqn.params
    if not places:
        return bind(eqn, values)
    if len(places) == 1 and (sides(eqn) is not None or kind == "fast_conv"):
        met.products.add(values[places[0]].name)
        return [_product(eqn, places[0], values)]
    if kind in PLACES and places == [0]:
        weight, *rest = values
        forward, backward = (bind(eqn, [x, *rest]) for x in (weight.forward, weight.backward))
        each = zip(forward, backward, strict=True)
        return [replace(weight, forward=x, backward=other) for x, other in each]
    if kind in REMATERIALIZED:
        run = lambda values: _run(programs(eqn)[0], values, met)
        return jax.checkpoint(run, prevent_cse=params["prevent_cse"], policy=params["policy"])(
            values
        )
    if kind in CALLS:
        return _read(programs(eqn)[0], values, met)
    if kind == "cond":
        branches = [
            lambda *xs, program=program: _run(program, [*xs], met) for program in programs(eqn)
        ]
        return lax.switch(values[0], branches, *values[1:])
    if kind == "scan":
        return _scan(eqn, values, met)
    for i in places:
        met.others.setdefault(values[i].name, f"{kind}{line_of(eqn)}")
    return bind(eqn, [_forward(value) for value in values])


def _scan(eqn: Any, values: list[Any], met: _Met) -> list[Any]:
    """A scan over stacks of weights, or with the same weights in each turn."""
    consts, carry, xs = scan_parts(eqn, values)
    carry = [_forward(x) for x in carry]  # the next turn may have changed them

    def turn(carry: list[Any], layers: list[Any]) -> tuple[list[Any], list[Any]]:
        results = _run(programs(eqn)[0], [*consts, *carry, *layers], met)
        return results[: len(carry)], results[len(carry) :]

    how = {name: eqn.params[name] for name in ("length", "reverse", "unroll")}
    carry, stacked = lax.scan(turn, carry, xs, **how)
    return [*carry, *stacked]


def _product(eqn: Any, place: int, values: list[Any]) -> Any:
    """A product of inputs and a weight, in the order of the equation."""
    weight, inputs = values[place], values[1 - place]
    of = lambda x, w: bind(eqn, [w, x] if place == 0 else [x, w])[0]

    @jax.custom_vjp
    def product(x: Any, w: Any, other: Any) -> Any:
        return of(x, w)

    def backward(read: Any, dy: Any) -> Any:
        x, w, other = read
        (dx,) = jax.vjp(lambda x: of(x, other), x)[1](dy)
        (dw,) = jax.vjp(lambda w: of(x, w), w)[1](dy)
        return dx, dw, None

    product.defvjp(lambda x, w, other: (of(x, w), (x, w, other)), backward)
    return product(inputs, weight.forward, weight.backward)


# --- what can't be --------------------------------------------------------------------------------


def _check(leaves: dict[str, Any], others: dict[str, Any]) -> None:
    if unknown := [(name, x) for name, x in others.items() if name not in leaves]:
        raise ValueError(
            f"backward_weights: `backward` has {quoted(unknown)}, and the params have no such "
            "leaf. Give a tree like the params, with None where both passes use one weight."
        )
    what = lambda x: f"{jnp.result_type(x)} of shape {jnp.shape(x)}"
    for name, other in others.items():
        if what(other) != what(leaves[name]):
            raise ValueError(
                f"backward_weights: '{name}' is {what(leaves[name])} in the forward pass and "
                f"{what(other)} in the backward pass; they must be alike."
            )


def _check_met(met: _Met, others: dict[str, Any]) -> None:
    for name in others:
        if name not in met.products:
            by = met.others.get(name)
            how = f"it is read by {by}" if by else "nothing reads it"
            raise ValueError(
                f"backward_weights: no product reads '{name}', so that it has no other weight in "
                f"the backward pass: {how}. Use None in its place: leave it out with "
                "prunable=jp.matching(exclude=...)."
            )
