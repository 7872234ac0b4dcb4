"""Lanes: networks that train side by side in one compiled program. The only loop over steps.

A *lane* is a network and how it trains. What differs between lanes is data: weights, masks, rates,
weight decay, the order of the examples. So seeds, arms, children of a soup, forks, and the phases
of an iterative method all run one program. A *program* is one compiled step and the data that it
reads. A *phase* is a function `state -> (state, record)`. Every array has a lane axis in front.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from recipes.common import data, models
from recipes.common.data import Split
from recipes.common.journal import At, Journal


class Network(NamedTuple):
    """A stack of networks."""

    params: Any
    batch_stats: Any  # running statistics of batch norm; {} where there are none
    masks: Any  # bool, None for a leaf that is never pruned; all True for a dense network

    @property
    def variables(self) -> dict[str, Any]:
        """The variables that `module.apply` takes."""
        statistics = {"batch_stats": self.batch_stats} if self.batch_stats else {}
        return {"params": self.params, **statistics}


class Lane(NamedTuple):
    """How a stack of networks trains.

    An optimizer with its schedule needs neither rates nor decay. A program may have lanes of
    another type that has an `order`.
    """

    order: jax.Array  # keys (lanes,): the order of the examples
    rates: Any = ()  # (lanes, steps): the learning rate of every step; after the last, 0
    decay: Any = ()  # (lanes,): added to the gradient, times the weights


class State(NamedTuple):
    """The values that a step changes."""

    params: Any
    batch_stats: Any
    opt_state: optax.OptState

    @property
    def network(self) -> Network:
        """The networks that are trained, with the masks of `jp.sparsify`."""
        return Network(self.params, self.batch_stats, jp.get_masks(self.opt_state))


# (params, the state that they are of, images, labels, lane) -> loss, (accuracy, batch_stats)
Loss = Callable[[Any, State, jax.Array, jax.Array, Any], tuple[jax.Array, tuple[jax.Array, Any]]]
# one network's (state, images, labels, lane) -> state, {"loss", "accuracy"}
Step = Callable[[State, jax.Array, jax.Array, Any], tuple[State, dict[str, jax.Array]]]


class Program(NamedTuple):
    """One training step, its data, and its compiled forms."""

    module: nn.Module
    init: Any  # jitted: (lane, params) -> a stack of optimizer states
    step: Step
    data: Split  # on the device
    batch_size: int
    chunk_steps: int  # steps in one call of the device
    compiled: dict[Any, Any]  # by the shapes of the arguments
    # (steps done, a stack of states) -> the stack, in smaller arrays where the rest needs no more
    between: Callable[[int, State], State] = lambda step, state: state


class Progress(NamedTuple):
    """The progress of training, after a call of the device."""

    step: int
    seconds: float  # in steps so far, without compilation and without the caller's work
    state: State  # the next call takes its memory: copy what must outlive it
    metrics: dict[str, jax.Array]  # (lanes,): means over the steps of the call


# --- a program ------------------------------------------------------------------------------------


def program(
    module: nn.Module,
    optimizer: Callable[[Any], optax.GradientTransformation],
    train: Split,
    batch_size: int,
    chunk_steps: int,
    loss: Loss | None = None,
    used: Callable[[State], Any] = lambda state: state.params,
) -> Program:
    """The program that trains `module` by `optimizer(lane)`: the optax loop.

    Args:
      loss: the loss of one network; None for the cross-entropy of a classifier.
      used: the params at which the gradient is taken; all params get this gradient.
    """
    gradient = jax.value_and_grad(loss or _cross_entropy(module), has_aux=True)
    of_lane = lambda lane: optax.with_extra_args_support(optimizer(lane))

    def step(state: State, images: Any, labels: Any, lane: Any) -> Any:
        given = used(state), state, images, labels, lane
        (value, (accuracy, batch_stats)), grads = gradient(*given)
        update = of_lane(lane).update
        updates, opt_state = update(grads, state.opt_state, state.params, value=value)
        params = optax.apply_updates(state.params, updates)
        return State(params, batch_stats, opt_state), {"loss": value, "accuracy": accuracy}

    init = jax.jit(jax.vmap(lambda lane, params: of_lane(lane).init(params)))
    return Program(module, init, step, jax.device_put(train), batch_size, chunk_steps, {})


def _cross_entropy(module: nn.Module) -> Loss:
    loss_fn = models.classification(module)
    return lambda params, state, images, labels, lane: loss_fn(
        params, state.batch_stats, images, labels
    )


def by_rates(
    optimizer: Callable[[optax.Schedule], optax.GradientTransformation], lane: Lane
) -> optax.GradientTransformation:
    """`optimizer` (such as `optax.adam`) by the rates of a lane, with its weight decay."""
    rate = lambda count: lane.rates.at[count].get(mode="fill", fill_value=0.0)
    return optax.chain(optax.add_decayed_weights(lane.decay), optimizer(rate))


def keep_all(params: Any) -> Any:
    """The masks of a dense network: they keep all kernels."""
    return jp.all_kept(jp.kernels(params))


# --- training -------------------------------------------------------------------------------------


def seed_keys(seed: int, seeds: int) -> jax.Array:
    """One key per seed (seeds,): the keys of `seed`, `seed + 1`, ..., so that any can run alone."""
    return jax.vmap(jax.random.key)(seed + jnp.arange(seeds))


def initial(p: Program, keys: jax.Array) -> Network:
    """Untrained dense networks, one for each key: all recipes begin with these weights."""
    variables = models.init(p.module, keys, jnp.asarray(p.data.images[:1]))
    params = variables["params"]
    return Network(params, variables.get("batch_stats", {}), keep_all(params))


def shapes(p: Program, count: int) -> Any:
    """The shapes of the params of a stack of so many networks."""
    return jax.eval_shape(lambda: initial(p, seed_keys(0, count))._replace(masks=None)).params


def begin(p: Program, network: Network, lane: Any) -> State:
    """New optimizers for these weights and masks; `jp.sparsify` makes masks that are None."""
    state = State(network.params, network.batch_stats, p.init(lane, network.params))
    return copied(state) if network.masks is None else under(state, network.masks)


def under(state: State, masks: Any) -> State:
    """The state with other masks: pruned weights are zero, their moments after the next step."""
    params = jp.apply_masks(state.params, masks)
    held = state.opt_state.mask_state._replace(masks=masks)
    return copied(State(params, state.batch_stats, state.opt_state._replace(mask_state=held)))


def copied(tree: Any) -> Any:
    """A copy. Training donates its state: no two leaves of it may share memory."""
    return jax.tree.map(jnp.copy, tree)


def train(
    p: Program, state: State, lane: Any, stop: int, at: At, start: int = 0, first: int = 0
) -> State:
    """Steps `start` to `stop`; between calls of the device `at(step, state)` is called.

    `first` is the place of step 0 in the order of the examples: a network that is rewound to step k
    sees the same examples from step k on again.
    """
    for point in advance(p, state, lane, stop, start, first):
        state = point.state
        at(point.step, state)
    return gathered(state)


def advance(
    p: Program, state: State, lane: Any, stop: int, start: int = 0, first: int = 0
) -> Iterator[Progress]:
    """Steps `start` to `stop` of `train`, as an iterator: several programs can run in turns."""
    order = data.order(lane.order, len(p.data.labels), p.batch_size, first + start)
    devices, seconds = devices_for(len(lane.order)), 0.0
    state, lane = spread(state, devices), spread(lane, devices)
    while start < stop:
        n = min(p.chunk_steps, stop - start)
        now = state, p.data, jnp.asarray(np.stack(list(islice(order, n)))), lane
        run = _compiled(p, devices, now)
        began = time.perf_counter()
        state, metrics = run(*now)
        jax.block_until_ready(metrics)
        seconds += time.perf_counter() - began
        start += n
        state = p.between(start, state)
        yield Progress(start, seconds, state, metrics)


def _compiled(p: Program, devices: int, arguments: Any) -> Any:
    """The chunk for arguments of these shapes, compiled once; the clock does not count this."""
    leaves, structure = jax.tree.flatten(arguments)
    shapes = devices, structure, *((x.shape, x.dtype) for x in leaves)
    if shapes not in p.compiled:
        p.compiled[shapes] = chunk(p.step, devices).lower(*arguments).compile()
    return p.compiled[shapes]


def chunk(step: Step, devices: int = 1) -> Any:
    """Jitted: as many steps of all lanes as `order` (steps, lanes, batch) has.

    (state, data, order, lane) -> state, metrics. The state is donated. On several devices each
    trains its part of the lanes, of a state that is `spread`.
    """

    def steps(state: State, data: Split, order: jax.Array, lane: Any) -> Any:
        def one(state, indices):
            return jax.vmap(step)(state, data.images[indices], data.labels[indices], lane)

        state, metrics = jax.lax.scan(one, state, order)
        return state, jax.tree.map(lambda m: m.mean(0), metrics)

    if devices > 1:
        lanes, order = jax.P("lane"), jax.P(None, "lane")
        specs = lanes, jax.P(), order, lanes
        steps = jax.shard_map(steps, mesh=_mesh(devices), in_specs=specs, out_specs=lanes)
    return jax.jit(steps, donate_argnums=0)


# --- devices --------------------------------------------------------------------------------------


def devices_for(lanes: int) -> int:
    """The number of devices for so many lanes: on an accelerator as many as divide the lanes.

    On a CPU it is one: its cores work together anyway.
    """
    return 1 if jax.default_backend() == "cpu" else math.gcd(lanes, jax.device_count())


def spread(stack: Any, devices: int) -> Any:
    """`stack` with its lanes split over the devices."""
    if devices == 1:
        return stack
    return jax.device_put(stack, jax.NamedSharding(_mesh(devices), jax.P("lane")))


def gathered(stack: Any) -> Any:
    """`stack` on one device."""
    return stack if devices_of(stack) == 1 else jax.device_put(stack, jax.devices()[0])


def devices_of(stack: Any) -> int:
    """The number of devices that hold the stack."""
    return max((len(x.devices()) for x in jax.tree.leaves(stack)), default=1)


def _mesh(devices: int) -> jax.sharding.Mesh:
    return jax.make_mesh((devices,), ("lane",), axis_types=(jax.sharding.AxisType.Auto,))


# --- stacks ---------------------------------------------------------------------------------------


def table(schedule: optax.Schedule, steps: int, length: int | None = None) -> jax.Array:
    """The first `steps` rates of a schedule, then zeros up to `length`."""
    rates = jax.vmap(lambda count: jnp.asarray(schedule(count), jnp.float32))(jnp.arange(steps))
    return jnp.pad(rates, (0, (length or steps) - steps))


def alike(order: jax.Array, rates: jax.Array, decay: float = 0.0) -> Lane:
    """Lanes that differ only in the order of their examples; rates are (steps,)."""
    n = len(order)
    return Lane(order, jnp.tile(rates, (n, 1)), jnp.full(n, decay, jnp.float32))


def lane_of(stack: Any, i: int) -> Any:
    """Lane i of a stack; None of None."""
    return jax.tree.map(lambda x: x[i], stack)


def part(stack: Any, start: int, stop: int | None = None) -> Any:
    """The lanes from `start` up to `stop`."""
    return jax.tree.map(lambda x: x[start:stop], stack)


def repeat(stack: Any, times: int) -> Any:
    """Each lane several times: a a b b."""
    return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), stack)


def stacked(networks: Iterable[Any]) -> Any:
    """A stack of trees that are alike; the inverse of `lane_of`."""
    return jax.tree.map(lambda *x: jnp.stack(x), *networks)


def every(stack: Any, n: int) -> Any:
    """The lanes 0, n, 2 n, ...: the first of each n."""
    return jax.tree.map(lambda x: x[::n], stack)


def tile(stack: Any, times: int) -> Any:
    """The stack several times: a b a b."""
    return jax.tree.map(lambda x: jnp.concatenate([x] * times), stack)


def join(*stacks: Any) -> Any:
    """Stacks one after the other."""
    return jax.tree.map(lambda *xs: jnp.concatenate(xs), *stacks)


def split(stack: Any, *sizes: int) -> Any:
    """(a * b * ..., ...) as (a, b, ..., ...); one size may be -1."""
    return jax.tree.map(lambda x: x.reshape(*sizes, *x.shape[1:]), stack)


# --- phases ---------------------------------------------------------------------------------------


def phases(
    journal: Journal, count: int, state: Any, phase: Callable[[int, Any], tuple[Any, Any]]
) -> Any:
    """`state, record = phase(i, state)` for each i below `count`, logged and settled.

    The only loop over phases. A resumed run continues after the last settled phase. All states have
    one structure; a phase without a record (None) adds no line to metrics.jsonl.
    """
    saved = journal.last(state)
    state = state if saved is None else saved  # an array has no truth
    for i in range(journal.settled, count):
        state, record = phase(i, state)
        if record is not None:
            journal.log(record)
        journal.settle(state)
    return state


def trained(
    journal: Journal,
    name: str,
    p: Program,
    network: Network,
    lane: Any,
    steps: int,
    first: int = 0,
) -> Network:
    """The networks after `steps` steps of new optimizers; a resumed run continues within."""

    def to_the_end(state: State, start: int, at: At) -> State:
        return train(p, state, lane, steps, at, start, first)

    state = begin(p, network, lane)
    return journal.once(name, steps, state, to_the_end, f"{len(lane.order)} networks").network


def continued(
    journal: Journal, name: str, p: Program, state: State, lane: Any, start: int, stop: int
) -> State:
    """The states after the steps from `start` to `stop`, of the same optimizers; a resumed run
    continues within. `state` is left as it is.
    """

    def to_the_end(state: State, done: int, at: At) -> State:
        since = lambda step, state: at(step - start, state)
        state = copied(state)  # training takes its memory, and the journal has it
        return train(p, state, lane, stop, since, start + done)

    return journal.once(name, stop - start, state, to_the_end, f"{len(lane.order)} networks")
