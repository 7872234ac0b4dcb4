"""BDWP: N:M along the inputs in the forward pass, and along the outputs in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp

from jaxprune.base import Params
from jaxprune.masks import merged
from jaxprune.prunable.rules import kernels
from jaxprune.reparam.backward_weights import backward_weights
from jaxprune.reparam.largest import n_of_m
from jaxprune.reparam.sr_ste import pulled
from jaxprune.trees import map_scored


def bdwp(
    fn: Callable[..., Any],
    n: int,
    m: int,
    prunable: Callable[[Params], Params] = kernels,
) -> Callable[..., Any]:
    """`fn` whose products are N:M in both passes, each along the axis that its product contracts.

        forward     y = product(x, w * mask of the inputs)
        backward    dx = transpose of (dy, w * mask of the outputs)     dw, dense

    One dense weight has both masks, made anew in every pass: of every M consecutive inputs, and of
    every M consecutive outputs, the N largest. All weights learn: their gradient passes unchanged
    (straight through). The optimizer trains the params themselves.

        network = jp.reparam.bdwp(fn, 2, 8)
        loss = lambda params, batch: task_loss(network(params, batch))

    After training `masks = select(magnitude(kernels(w)), uniform, 1 - n / m, nm(n, m))` are those
    of the last network, and `fn` uses them. Here masked products are dense: `bdwp` shows what the
    training gives; only hardware with N:M products makes it faster.

    Args:
      fn: `(params, *args) -> Any`, of arrays: a network or a loss. `backward_weights` says which
        products it may have.
      n, m: 1 <= n < m.
      prunable: which leaves are pruned; all others are used as they are.

    Returns:
      `(params, *args) -> Any`.

    Raises:
      ValueError: for numbers that can't be; (when called) if no leaf is prunable, if m does not
        divide the inputs and the outputs of a leaf, where its inputs can't be known, or as
        `backward_weights`.

    >>> import jax, jax.numpy as jnp, jaxprune as jp
    >>> params = {'kernel': jnp.array([[1., 4.], [2., 3.]])}  # 2 inputs, 2 outputs
    >>> network = jp.reparam.bdwp(lambda params, x: (x @ params['kernel']).sum(), 1, 2)
    >>> dw, dx = jax.grad(network, argnums=(0, 1))(params, jnp.array([1., 10.]))
    >>> dx  # the largest weight of each input
    Array([4., 3.], dtype=float32)
    >>> dw['kernel']
    Array([[ 1.,  1.],
           [10., 10.]], dtype=float32)

    The authors' abstract says that both passes are N:M. The axes of the groups and the dense
    gradient of the weights are how we read it.

    Reference: Fang et al., 2023, Efficient N:M Sparse DNN Training Using Algorithm, Architecture,
    and Dataflow Co-Design.
    """
    of_inputs = n_of_m("bdwp", n, m, prunable)
    of_outputs = n_of_m("bdwp", n, m, prunable, outputs=True)
    run = backward_weights(fn)

    def network(params: Params, *args: Any) -> Any:
        chosen, forward = of_inputs(params)
        _, backward = of_outputs(params)
        used = merged(params, map_scored(partial(pulled, 0.0), chosen, forward))
        other = map_scored(lambda w, mask: jnp.where(mask, w, 0), chosen, backward)
        return run(used, other, *args)

    return network
