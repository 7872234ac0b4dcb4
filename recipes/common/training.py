"""Training several seeds at once: one program, `vmap` over seeds inside each step.

Every array of a state has a leading seed axis. Each seed has its own initial weights and its own
order of the data; the data itself is on the device once. A call runs a chunk of steps in one
`lax.scan`, and between chunks the caller can look, log, evaluate and stop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from enum import Enum
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from recipes.common.data import Split
from recipes.common.data import order as data_order
from recipes.common.lanes import seed_keys as seed_keys
from recipes.common.models import LossFn as LossFn
from recipes.common.models import classification
from recipes.common.models import init as init_variables


class Weights(Enum):
    """What the masks in an optimizer's state mean for the weights."""

    DENSE = "there are no masks"
    SPARSE = "what is pruned is zero, from the first step on (`jp.sparsify`)"
    DENSE_COPY = "all weights may learn, the network uses those that are kept (`jp.keep_dense`)"


class Learned(NamedTuple):
    """What an arm learns beside the weights of its network, such as gates: params beside them.

    Its optimizer is a `jp.sparsify`, which counts the `step`.
    """

    start: Callable[[Any], Any]  # the network's params -> all params
    # (params, batch_stats, images, labels, step, key) -> loss, (accuracy, batch_stats)
    loss: Callable[..., tuple[jax.Array, tuple[jax.Array, Any]]]
    network: Callable[[Any, jax.Array], Any]  # (params, step) -> what the network uses, in tests
    measure: Callable[[Any, jax.Array], dict[str, jax.Array]]  # (params, step) -> what is logged


class Arm(NamedTuple):
    """A network and how to train it. Arms that differ only in how they start share a program."""

    module: nn.Module
    # from what is a seed's own: a key (neither that of its weights nor its data's), or a `Lane`
    optimizer: Callable[[Any], optax.GradientTransformation]
    weights: Weights = Weights.DENSE
    # what is the seeds' own, a stack of first params -> a stack of params, one of optimizer states
    start: Callable[[jax.Array, Any], tuple[Any, optax.OptState]] | None = None
    learned: Learned | None = None


class TrainState(NamedTuple):
    """What changes in a step. With a seed axis in front of every array, a stack of states."""

    params: Any
    batch_stats: Any  # running statistics of batch norm; {} where there are none
    opt_state: optax.OptState


class Progress(NamedTuple):
    """How far training is: `loss` and `accuracy` (seeds,) are means over the steps of a chunk."""

    step: int
    seconds: float  # in steps so far, without compilation and without what the caller does
    state: TrainState
    loss: np.ndarray
    accuracy: np.ndarray


# (state, train, order (steps, seeds, batch), own) -> state, {"loss", "accuracy"}: (seeds,); jitted.
# `own` is what each seed's optimizer is made from, with a seed axis: see `own_keys`.
Chunk = jax.stages.Wrapped


def devices_for(seeds: int) -> int:
    """How many devices to spread so many seeds over: all of an accelerator that divide them.

    One of a CPU, whose cores work together anyway.
    """
    return 1 if jax.default_backend() == "cpu" else math.gcd(seeds, jax.device_count())


def spread(stack: Any, devices: int) -> Any:
    """`stack` with its seeds on so many devices, or brought together on the first."""
    if devices == 1:
        return jax.device_put(stack, jax.devices()[0])
    return jax.device_put(stack, jax.NamedSharding(_seed_mesh(devices), jax.P("seed")))


def _seed_mesh(devices: int) -> jax.sharding.Mesh:
    return jax.make_mesh((devices,), ("seed",), axis_types=(jax.sharding.AxisType.Auto,))


def init(arm: Arm, keys: jax.Array, images: np.ndarray) -> TrainState:
    """A stack of initial states, one per key; `images` (n, h, w, c) gives the input's shape."""
    variables = init_variables(arm.module, keys, jnp.asarray(images[:1]))
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    if arm.learned:
        params = jax.vmap(arm.learned.start)(params)
    own = own_keys(keys)
    if arm.start is None:
        begin = jax.jit(jax.vmap(lambda own, params: optimizer_of(arm, own).init(params)))
        opt_state = begin(own, params)
    else:
        params, opt_state = arm.start(own, params)
    if arm.weights is Weights.SPARSE:  # so that the first forward pass is sparse too
        params = jp.apply_masks(params, jp.get_masks(opt_state))
    # copied, since a state is donated whole: no two of its leaves may share memory
    return jax.tree.map(jnp.copy, TrainState(params, batch_stats, opt_state))


def seed_of(stack: Any, i: int) -> Any:
    """Seed i of a stack; None of None."""
    return jax.tree.map(lambda x: x[i], stack)


def network(arm: Arm, state: TrainState) -> Any:
    """The params that the network uses; of one state or of a stack."""
    if arm.learned:
        used, step = arm.learned.network, state.opt_state.step
        return jax.jit(jax.vmap(used) if step.ndim else used)(state.params, step)
    if arm.weights is Weights.DENSE_COPY:
        return jp.apply_masks(state.params, jp.get_masks(state.opt_state))
    return state.params


def own_keys(keys: jax.Array) -> jax.Array:
    """The keys of the seeds' optimizers (seeds,): neither those of their weights nor their data."""
    return jax.vmap(lambda key: jax.random.fold_in(key, 2))(keys)


def optimizer_of(arm: Arm, own: Any) -> optax.GradientTransformationExtraArgs:
    """That of the seed to which this belongs."""
    return optax.with_extra_args_support(arm.optimizer(own))


def make_chunk(arm: Arm, devices: int = 1) -> Chunk:
    """A jitted function that runs as many steps as `order` has; the state it is given is donated.

    It is the plain optax loop, whatever the optimizer. Where the network uses masked weights, the
    gradient is taken at those and passed straight through to all. On several
    devices each trains its own seeds, of a state that is `spread`.
    """
    loss_fn = arm.learned.loss if arm.learned else classification(arm.module)
    gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)

    def step(state: TrainState, images, labels, own):
        given = [network(arm, state), state.batch_stats, images, labels]
        if arm.learned:  # its key is none of those of weights, data and optimizer
            now = state.opt_state.step
            given[0] = state.params
            given += [now, jax.random.fold_in(jax.random.fold_in(own, 3), now)]
        (loss, (accuracy, batch_stats)), grads = gradient_fn(*given)
        update = optimizer_of(arm, own).update
        updates, opt_state = update(grads, state.opt_state, state.params, value=loss)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, batch_stats, opt_state), {"loss": loss, "accuracy": accuracy}

    return chunk_of(step, devices)


def chunk_of(step: Callable[..., tuple[Any, dict[str, jax.Array]]], devices: int = 1) -> Chunk:
    """As many steps of a stack as `order` has, jitted; the state it is given is donated.

    `step` is that of one network: (state, images, labels, own) -> state, metrics.
    """

    def chunk(state, train, order, own):
        def steps(state, indices):
            return jax.vmap(step)(state, train.images[indices], train.labels[indices], own)

        state, metrics = jax.lax.scan(steps, state, order)
        return state, jax.tree.map(lambda m: m.mean(0), metrics)

    if devices > 1:
        seed, order = jax.P("seed"), jax.P(None, "seed")
        chunk = jax.shard_map(
            chunk, mesh=_seed_mesh(devices), in_specs=(seed, jax.P(), order, seed), out_specs=seed
        )
    return jax.jit(chunk, donate_argnums=0)


def train(
    chunk: Chunk,
    state: TrainState,
    data: Split,
    keys: jax.Array,
    *,
    batch_size: int,
    steps: int,
    chunk_steps: int,
    start: int = 0,
) -> Iterator[Progress]:
    """Runs steps `start` to `steps`; yields after every `chunk_steps` and at the end.

    `data` should be on the device (`jax.device_put`). A yielded state is donated to the next chunk:
    copy what must outlive it.
    """
    order, own = data_order(keys, len(data.labels), batch_size, start), own_keys(keys)
    compiled: dict[int, Any] = {}
    seconds = 0.0
    while start < steps:
        now = min(chunk_steps, steps - start)
        indices = jnp.asarray(np.stack(list(islice(order, now))))
        if now not in compiled:  # compile apart from the clock; the last chunk may be shorter
            compiled[now] = chunk.lower(state, data, indices, own).compile()
        began = time.perf_counter()
        state, metrics = compiled[now](state, data, indices, own)
        loss, accuracy = np.asarray(metrics["loss"]), np.asarray(metrics["accuracy"])
        seconds += time.perf_counter() - began
        start += now
        yield Progress(start, seconds, state, loss, accuracy)


S = TypeVar("S")  # what changes in training, such as a `TrainState`


def advance(
    chunk: Chunk,
    state: S,
    data: Split,
    keys: jax.Array,
    own: Any,
    *,
    batch_size: int,
    chunk_steps: int,
    start: int,
    stop: int,
    at: Callable[[int, S], None],
    first: int = 0,
    look: Callable[[int, S, Any], None] = lambda step, state, metrics: None,
) -> S:
    """Runs the steps from `start` up to `stop`, and calls `at` after each chunk: (step, state).

    `keys` order the examples, `own` is what optimizers are made from, one a network; `state` is
    donated. `first` is where in the order of the examples step 0 is. `look` is called before `at`,
    with what the chunk has measured too.
    """
    order = data_order(keys, len(data.labels), batch_size, first + start)
    while start < stop:
        now = min(chunk_steps, stop - start)
        indices = jnp.asarray(np.stack(list(islice(order, now))))
        state, metrics = chunk(state, data, indices, own)
        jax.block_until_ready(metrics)
        start += now
        look(start, state, metrics)
        at(start, state)
    return state


def make_evaluate(
    module: nn.Module, test: Split, batch_size: int = 250
) -> Callable[[Any, Any], np.ndarray]:
    """A function (params, batch_stats), of a stack, -> their accuracy (seeds,) on all of `test`."""
    batch_size = min(batch_size, len(test.labels))
    padding = -len(test.labels) % batch_size
    images = np.concatenate([test.images, np.zeros_like(test.images[:padding])])
    labels = np.concatenate([test.labels, np.full(padding, -1, np.int32)])  # -1: never right
    images = images.reshape(-1, batch_size, *images.shape[1:])
    batches = jax.device_put((images, labels.reshape(-1, batch_size)))

    @jax.jit
    def evaluate(params, batch_stats, batches):
        def count(params, batch_stats, images, labels):
            logits: Any = module.apply({"params": params, "batch_stats": batch_stats}, images)
            return jnp.sum(jnp.argmax(logits, -1) == labels)

        over_seeds = jax.vmap(count, in_axes=(0, 0, None, None))
        counts = jax.lax.map(lambda batch: over_seeds(params, batch_stats, *batch), batches)
        return counts.sum(0)

    def accuracy(params: Any, batch_stats: Any) -> np.ndarray:
        return np.asarray(evaluate(params, batch_stats, batches)) / len(test.labels)

    return accuracy
