"""How many units with ReLU give zero: for one example, and for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from jaxprune.base import Params
from jaxprune.programs.interpret import CALLS, bind, programs, walk
from jaxprune.trees import shape_only

_ENTERED = (*CALLS, "custom_jvp_call", "custom_vjp_call")  # `jax.nn.relu` is the first of these


class DeadRelus(NamedTuple):
    """Two rates of units that give zero, over all units of all layers with ReLU.

    Attributes:
      dynamic: float32 scalar, the mean over examples of the fraction of units that give zero.
      static: float32 scalar, the fraction of units that give zero for all examples.
    """

    dynamic: jax.Array
    static: jax.Array


def dead_relus(fn: Callable[..., Any], params: Params, *inputs: Any) -> DeadRelus:
    """The dynamic and the static dead rate of a network, on a batch of inputs.

    A unit is an entry of the result of a ReLU for one example: of a dense layer a neuron, of a
    convolution a channel at a place. The program of `fn` is read, so no model is edited: a ReLU is
    `max(x, 0)`, as in `jax.nn.relu` and `jnp.maximum(x, 0)`. Those within `scan`, `cond` or
    `while_loop` are not seen.

    Args:
      fn: `(params, *inputs) -> Any`, of arrays.
      params: masked, as the network uses them.
      inputs: of a batch; the examples are the first axis of each ReLU.

    Raises:
      ValueError: if the program has no ReLU.

    Reference: Liu et al., 2022, AP: Selective Activation for De-sparsifying Pruned Neural Networks.

    >>> import jax, jax.numpy as jnp, jaxprune as jp
    >>> fn = lambda params, x: jax.nn.relu(x @ params)
    >>> x = jnp.array([[1., 1.], [1., -1.]])
    >>> rates = jp.analysis.dead_relus(fn, jnp.array([[1., -1., 0.], [1., 0., 2.]]), x)
    >>> print(f"{rates.dynamic:.4f} {rates.static:.4f}")
    0.6667 0.3333
    """
    program = jax.make_jaxpr(fn)(*jax.tree.map(shape_only, (params, *inputs)))
    seen: list[jax.Array] = []
    _run(program, jax.tree.leaves((params, *inputs)), seen)
    if not seen:
        raise ValueError(
            "dead_relus: the program has no ReLU, max(x, 0); one within scan, cond or while_loop "
            "is not seen. Other activations are seldom exactly zero."
        )
    if any(not x.ndim or not x.size for x in seen):
        raise ValueError(
            "dead_relus: the first axis of each ReLU is that of the examples, and there is at "
            f"least one; got shapes {[x.shape for x in seen]}."
        )
    units = sum(x[0].size for x in seen)
    zeros = [(x == 0).astype(jnp.float32) for x in seen]
    dynamic = jnp.stack([jnp.sum(jnp.mean(z, 0)) for z in zeros]).sum()
    static = jnp.stack([jnp.sum(jnp.min(z, 0)) for z in zeros]).sum()
    return DeadRelus(dynamic / units, static / units)


def _run(program: Any, operands: list[Any], seen: list[jax.Array]) -> list[Any]:
    """The results of a program; appends those of its ReLUs to `seen`."""

    def equation(eqn: Any, values: list[Any]) -> list[Any]:
        if eqn.primitive.name in _ENTERED and (inner := programs(eqn)):
            return _run(inner[0], values, seen)
        results = bind(eqn, values)
        if eqn.primitive.name == "max" and any(map(_is_zero, eqn.invars)):
            seen.append(results[0])
        return results

    return walk(program, operands, equation, lambda x, atom: x)


def _is_zero(atom: Any) -> bool:
    return isinstance(atom, Literal) and jnp.ndim(atom.val) == 0 and atom.val == 0
