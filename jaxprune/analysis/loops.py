"""Loops of analysis: one step after the other, compiled whole or driven from Python."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial


def over_batches(
    loss: Callable[[Any, Any], Any], batches: Any, unroll: bool = False
) -> Callable[[Any], Any]:
    """The mean of `loss(params, batch)` over stacked batches, as a function of the params alone.

        loss(params) = 1/n sum_i loss(params, batch_i)

    Only one batch is in memory at a time, also in its gradient and its Hessian-vector product. The
    data are handed to compiled programs as arguments: the same program serves other batches.

    Args:
      loss: `(params, batch) -> scalar`, or a pytree of scalars: the mean over one batch.
      batches: a pytree of arrays (batches, examples, ...): stacked batches of one size.
      unroll: lay the batches out one after the other, without a loop: XLA's convolutions on CPU
        are 15 to 65 times slower inside one. Compilation then grows with their number.

    Raises:
      ValueError: if there is no batch, or the leaves differ in how many they hold.
    """
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batches)}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        raise ValueError(
            "over_batches needs arrays (batches, examples, ...), all with the same number of "
            f"batches; got shapes {[jnp.shape(leaf) for leaf in jax.tree.leaves(batches)]}. From "
            "n * b examples: x.reshape(n, b, *x.shape[1:])."
        )
    mean = _unrolled_mean if unroll else _mean
    return Partial(mean, as_partial(loss), batches)


def _mean(loss: Any, batches: Any, params: Any) -> Any:
    n = len(jax.tree.leaves(batches)[0])

    # checkpoint: the gradient recomputes a batch when it gets there, and keeps nothing until then
    @jax.checkpoint
    def step(total: Any, batch: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, loss(params, batch)), None

    shapes = jax.eval_shape(loss, params, jax.tree.map(lambda x: x[0], batches))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = lax.scan(step, zeros, batches)
    return jax.tree.map(lambda t: t / n, total)


def _unrolled_mean(loss: Any, batches: Any, params: Any) -> Any:
    n = len(jax.tree.leaves(batches)[0])
    own = [loss(params, jax.tree.map(lambda x, i=i: x[i], batches)) for i in range(n)]
    return jax.tree.map(lambda *parts: sum(parts) / n, *own)


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

    `unroll` calls the jitted step from Python, once for each x: it is compiled once, and what is
    slow inside a loop (convolutions on CPU) is not in one.

    Args:
      step: a function of a module, not a closure: what it needs comes in `context`, a pytree.
    """
    if not unroll:
        return _scanned(Partial(step), context, carry, xs)
    ys = []
    for i in range(len(jax.tree.leaves(xs)[0])):
        carry, y = _stepped(Partial(step), context, carry, jax.tree.map(lambda x, i=i: x[i], xs))
        ys.append(y)
    return carry, jax.tree.map(lambda *parts: jnp.stack(parts), *ys)


@jax.jit
def _scanned(step: Any, context: Any, carry: Any, xs: Any) -> tuple[Any, Any]:
    return lax.scan(partial(step, context), carry, xs)


@jax.jit
def _stepped(step: Any, context: Any, carry: Any, x: Any) -> tuple[Any, Any]:
    return step(context, carry, x)
