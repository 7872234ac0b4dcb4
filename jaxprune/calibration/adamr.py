"""AdamR: Adam that pulls fine-tuned weights back to where they began, so that changes can go."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune.base import Params
from jaxprune.trees import check_like


class AdamRState(NamedTuple):
    """The state of `adamr`.

    Attributes:
      adam: the state of `optax.scale_by_adam`.
      start: the params at `init`, which weights are pulled to.
    """

    adam: optax.ScaleByAdamState
    start: Params


def adamr(
    learning_rate: optax.ScalarOrSchedule,
    pull: float = 1e-4,
    absolute: bool = False,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """Adam for fine-tuning: the smaller the changes, the more of them `dare` can drop.

        w - learning_rate (adam(g) + pull / sqrt(mean(v)) (w - start))

    v is Adam's second moment after this gradient, without its bias, and its mean is over all
    params. `start` are the params that `init` is called with: the pretrained ones.

    Args:
      learning_rate: a number, or a schedule.
      pull: 0 or more; 0 is Adam.
      absolute: sign(w - start) in place of w - start, which pulls small changes harder.
      b1, b2, eps: those of Adam.

    Raises:
      ValueError: for a pull below 0; (in update) without params, or with params that are not like
        those of `init`.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> tx = jp.calibration.adamr(0.01, pull=0.1)
    >>> pretrained = {'w': jnp.array([1., 2.])}
    >>> state, params = tx.init(pretrained), {'w': jnp.array([1.5, 2.])}
    >>> tx.update({'w': jnp.array([0., 2.])}, state, params)[0]['w'].round(5)
    Array([-0.00035, -0.01   ], dtype=float32)

    Reference: Deng et al., 2025, DARE the Extreme: Revisiting Delta-Parameter Pruning For
    Fine-Tuned Models. The mean over all params is that of the authors' code.
    """
    if not pull >= 0:
        raise ValueError(f"adamr: pull is a number, 0 or more; got {pull}.")
    adam = optax.scale_by_adam(b1, b2, eps)
    rate = optax.scale_by_learning_rate(learning_rate)

    def init(params: Params) -> AdamRState:
        return AdamRState(adam.init(params), jax.tree.map(jnp.copy, params))

    def update(
        grads: optax.Updates, state: AdamRState, params: Params | None = None, **_: object
    ) -> tuple[optax.Updates, AdamRState]:
        if params is None:
            raise ValueError("adamr pulls params to their start: call update(grads, state, params)")
        check_like("adamr: the params of init", state.start, params)
        updates, after = adam.update(grads, state.adam)
        v = jax.tree.leaves(optax.tree.bias_correction(after.nu, b2, after.count))
        root = jnp.sqrt(sum(jnp.sum(x) for x in v) / max(sum(x.size for x in v), 1))
        strength = pull / jnp.where(root > 0, root, 1)

        def pulled(u: jax.Array, w: jax.Array, start: jax.Array) -> jax.Array:
            change = w - start
            return u + (strength * (jnp.sign(change) if absolute else change)).astype(u.dtype)

        return jax.tree.map(pulled, updates, params, state.start), AdamRState(after, state.start)

    return optax.chain(optax.GradientTransformationExtraArgs(init, update), rate)
