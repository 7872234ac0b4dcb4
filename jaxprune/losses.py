"""Losses, functions of the params to a scalar: their mean over batches, checks, and loops.

A loss goes into compiled programs as a pytree (`as_partial`): its data are arguments, so that the
same program serves other data.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from jaxprune.base import Params

Loss = Callable[[Params], Any]  # params -> scalar, or a tree of scalars such as {name: scalar}


class Estimate(NamedTuple):
    """A mean and its standard error: scalars, or trees of arrays alike."""

    mean: Any
    standard_error: Any


def over_batches(loss: Callable[[Any, Any], Any], batches: Any, unroll: bool = False) -> Loss:
    """The mean of `loss(params, batch)` over stacked batches, as a function of the params alone.

        loss(params) = 1/n sum_i loss(params, batch_i)

    Only one batch is in memory at a time, also in the gradient and in Hessian-vector products.
    The batches are arguments of compiled programs: the same program serves other batches.

    Args:
      loss: `(params, batch) -> scalar`, or a pytree of scalars: the mean over one batch.
      batches: a pytree of arrays (batches, examples, ...), batches of one size.
      unroll: lay the batches out one after the other, without a loop: XLA's convolutions on CPU
        are 15 to 65 times slower inside one. Compilation then grows with the number of batches.

    Raises:
      ValueError: if there is no batch, or the leaves differ in the number of batches.
    """
    count_batches("over_batches", batches)
    return Partial(_unrolled_mean if unroll else _mean, as_partial(loss), batches)


def count_batches(what: str, batches: Any) -> int:
    """How many batches are stacked; ValueError if there is none, or leaves differ in it."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batches)]
    counts = {shape[:1] for shape in shapes}
    if len(counts) != 1 or counts & {(), (0,)}:
        raise ValueError(
            f"{what} needs arrays (batches, examples, ...), all with the same number of batches; "
            f"got shapes {shapes}. From n * b examples: x.reshape(n, b, *x.shape[1:])."
        )
    return shapes[0][0]


def _mean(loss: Any, batches: Any, params: Any) -> Any:
    n = _length(batches)

    # checkpoint: the backward pass computes a batch again, and stores nothing until then
    @jax.checkpoint
    def step(total: Any, batch: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, loss(params, batch)), None

    shapes = jax.eval_shape(loss, params, _at(batches, 0))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = lax.scan(step, zeros, batches)
    return jax.tree.map(lambda t: t / n, total)


def _unrolled_mean(loss: Any, batches: Any, params: Any) -> Any:
    n = _length(batches)
    losses = [loss(params, _at(batches, i)) for i in range(n)]
    return jax.tree.map(lambda *parts: sum(parts) / n, *losses)


def check_loss(what: str, loss: Any, params: Params, several: bool = False) -> None:
    """ValueError unless `loss(params)` is a scalar, or (`several`) a tree of scalars.

    TypeError if it is no function.
    """
    if not callable(loss):
        raise TypeError(
            f"{what} needs a loss, a function of params to a number, such as lambda params: "
            f"cross_entropy(model.apply(params, x), y); got {type(loss).__name__}."
        )
    result = jax.eval_shape(loss, params)
    leaves = jax.tree.leaves(result)
    if not several and not (isinstance(result, jax.ShapeDtypeStruct)):
        raise ValueError(
            f"{what} needs a loss that returns one number; got {type(result).__name__} of "
            f"{len(leaves)}. Choose one: lambda params: loss(params)['loss']."
        )
    for leaf in leaves:
        if leaf.shape != ():
            raise ValueError(
                f"{what} needs a loss that returns one number; got shape {leaf.shape}. Take the "
                "mean over examples; for a stack of params, vmap over it."
            )


def as_partial(f: Callable[..., Any]) -> Partial:
    """`f` as a pytree, so that `jit` takes it: the arrays of an `over_batches` are its leaves."""
    if isinstance(f, Partial):
        return f
    if not callable(f):
        raise TypeError(
            "a loss is a function of the params, such as lambda params: jnp.mean(...); got "
            f"{type(f).__name__}."
        )
    return Partial(f)


def scan(
    step: Callable[[Any, Any, Any], tuple[Any, Any]],
    context: Any,
    carry: Any,
    xs: Any,
    unroll: bool = False,
) -> tuple[Any, Any]:
    """`lax.scan` of `step(context, carry, x) -> (carry, y)`, jitted; with `unroll`, no loop in XLA.

    `unroll` calls the jitted step from Python, once for each x. The step is compiled once, and its
    convolutions are in no loop of XLA, where they are slow on CPU.

    Args:
      step: a function of a module, not a closure: it reads what it needs from `context`, a pytree.
    """
    if not unroll:
        return _scanned(Partial(step), context, carry, xs)
    ys = []
    for i in range(_length(xs)):
        carry, y = _stepped(Partial(step), context, carry, _at(xs, i))
        ys.append(y)
    return carry, jax.tree.map(lambda *parts: jnp.stack(parts), *ys)


@jax.jit
def _scanned(step: Any, context: Any, carry: Any, xs: Any) -> tuple[Any, Any]:
    return lax.scan(partial(step, context), carry, xs)


@jax.jit
def _stepped(step: Any, context: Any, carry: Any, x: Any) -> tuple[Any, Any]:
    return step(context, carry, x)


def _length(xs: Any) -> int:
    return len(jax.tree.leaves(xs)[0])


def _at(xs: Any, i: int) -> Any:
    return jax.tree.map(lambda x: x[i], xs)
