"""Children of trained networks: the same weights, moments and schedule, another order of the data.

All networks train under masks, dense ones under masks that keep all, so that dense and pruned
children of all trunks are lanes of one program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from jaxprune.masks import all_kept
from recipes.common import measures, training
from recipes.common.data import Split
from recipes.common.training import Arm, TrainState, Weights

ARMS = ("dense", "sparse")

At = Callable[[int, TrainState], None]  # called with the step, between calls of the device


class Forking(NamedTuple):
    """How trunks and children are trained."""

    arm: Arm  # sparsify(..., fixed(masks that keep all))
    chunk: training.Chunk
    train: Split  # on the device
    keys: jax.Array  # of the trunks (seeds,)
    batch_size: int
    chunk_steps: int


def forking(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    train: Split,
    keys: jax.Array,
    batch_size: int,
    chunk_steps: int,
) -> Forking:
    """A `Forking` with any optax optimizer."""
    image = jnp.asarray(train.images[:1])
    params = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    everything = all_kept(jp.kernels(params))
    tx = jp.sparsify(optimizer, jp.fixed(everything))
    arm = Arm(module, lambda key: tx, Weights.SPARSE)
    chunk = training.make_chunk(arm)
    return Forking(arm, chunk, jax.device_put(train), keys, batch_size, chunk_steps)


def trunks(f: Forking) -> TrainState:
    """The trunks at step 0: a stack of states (seeds,)."""
    image = np.zeros((1, *f.train.images.shape[1:]), np.float32)
    return training.init(f.arm, f.keys, image)


def advance(
    f: Forking, state: TrainState, keys: jax.Array, start: int, stop: int, at: At
) -> TrainState:
    """Runs the steps from `start` up to `stop`; `keys` are one a network, `state` is donated."""
    return training.advance(
        f.chunk,
        state,
        f.train,
        keys,
        keys,
        batch_size=f.batch_size,
        chunk_steps=f.chunk_steps,
        start=start,
        stop=stop,
        at=at,
    )


def magnitude_masks(params: Any, sparsity: float) -> Any:
    """The largest weights of each trunk, by a global threshold: a lottery ticket of one round."""

    @jax.jit
    @jax.vmap
    def largest(params):
        return jp.select(jp.magnitude(jp.kernels(params)), jp.global_threshold, sparsity)

    return largest(params)


def random_masks(f: Forking, params: Any, sparsity: float) -> Any:
    """Random masks with ERK's sparsities, others for each trunk."""

    @jax.jit
    @jax.vmap
    def drawn(key, params):
        score = jp.random(jax.random.fold_in(key, 2))
        return jp.select(score(jp.kernels(params)), jp.erk, sparsity)

    return drawn(f.keys, params)


def fork(f: Forking, state: TrainState, masks: Any, children: int) -> tuple[TrainState, jax.Array]:
    """Children (arms * seeds * children,) of trunks (seeds,), and a key for each.

    A child has the weights, moments and counts of its trunk, a sparse one under its trunk's mask.
    Dense and sparse ones have the same keys.
    """

    def lanes(dense, sparse):
        pair = jnp.stack([dense, sparse])[:, :, None]  # (arms, seeds, 1, ...)
        repeated = jnp.broadcast_to(pair, (*pair.shape[:2], children, *pair.shape[3:]))
        return repeated.reshape(-1, *pair.shape[3:])

    state = jax.tree.map(lambda x: lanes(x, x), state)
    masks = jax.tree.map(lambda m: lanes(jnp.ones_like(m), m), masks)
    opt_state = state.opt_state
    held = opt_state.mask_state._replace(masks=masks)
    state = state._replace(
        params=jp.apply_masks(state.params, masks), opt_state=opt_state._replace(mask_state=held)
    )
    noise = jax.vmap(lambda key, i: jax.random.fold_in(key, 3 + i), in_axes=(None, 0))
    keys = jax.vmap(noise, in_axes=(0, None))(f.keys, jnp.arange(children)).reshape(-1)
    # copied, since a state is donated whole
    return jax.tree.map(jnp.copy, state), jnp.concatenate([keys] * len(ARMS))


def between_siblings(
    state: TrainState, seeds: int, children: int, measure: Any, points: int
) -> dict[str, np.ndarray]:
    """What `measure` says along the paths between siblings: (arms, seeds, pairs, points).

    A path leads from the earlier child to the later; pairs are in the order of `np.triu_indices`.
    """
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    families = jax.tree.map(lambda x: x.reshape(-1, children, *x.shape[1:]), variables)
    stacked = measures.between_siblings(measure, families, points)
    return {
        name: v.reshape(len(ARMS), seeds, *v.shape[1:]).astype(np.float64)
        for name, v in stacked.items()
    }


def heights(values: dict[str, np.ndarray], arm: int, children: int) -> dict[str, Any]:
    """What `between_siblings` says of one arm: lists (seeds, pairs) and (seeds, children)."""
    record: dict[str, Any] = {}
    for name in values:
        own = values[name][arm]  # (seeds, pairs, points)
        record[f"{name}_instability"] = measures.above_ends(own).tolist()
        record[f"{name}_barrier"] = measures.above_chord(own).tolist()
        # the pairs of the first child come first: the first ends of one, the last ends of the rest
        ends = np.concatenate([own[:, :1, 0], own[:, : children - 1, -1]], axis=1)
        record[f"test_{name}"] = ends.tolist()
    return record
