"""Whole training steps, and the time to compile them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from recipes.benchmarks.section import Plan, Section, Target, comparison
from recipes.benchmarks.steps import SPARSITY, name_of
from recipes.common import lanes, models
from recipes.common.terminal import counted
from recipes.common.timing import Measured, interleaved

CLASSES = 10
MNIST, CIFAR = (28, 28, 1), (32, 32, 3)
COMPILE_AT_MOST = {"resnet20": 2}  # one takes ten seconds
ALLOCATIONS = (jp.uniform, jp.erk, jp.global_threshold)
EVERY = 10  # steps between updates of the masks
DENSE, CONTROL = "dense", "dense (A/A)"


def compile_time(plan: Plan) -> list[Section]:
    """From Python to a program: a dense training step, and sparsified ones, again and again."""
    return [_compile_time_of(model, plan) for model in plan.models]


def train_step(module: nn.Module, tx: optax.GradientTransformation) -> Callable[..., Any]:
    """The plain optax step on one batch."""
    loss_fn = models.classification(module)

    def step(state: lanes.State, images: jax.Array, labels: jax.Array) -> Any:
        (_, (_, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, state.batch_stats, images, labels
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        return lanes.State(optax.apply_updates(state.params, updates), batch_stats, opt_state)

    return step


def gradual(allocation: jp.base.Allocation) -> optax.GradientTransformation:
    """Adam with gradual pruning, its masks updated at every `EVERY`th step."""
    # long enough that every update of a benchmark prunes some more
    ramp = optax.polynomial_schedule(0.0, SPARSITY, power=3, transition_steps=100_000)
    return jp.sparsify(optax.adam(1e-3), jp.every(EVERY, jp.prune(jp.magnitude, allocation, ramp)))


def _compile_time_of(model: str, plan: Plan) -> Section:
    module = models.model(model, CLASSES)
    # what differs between allocations is the same for all models
    allocations = ALLOCATIONS if model == "lenet" else ALLOCATIONS[-1:]
    optimizers = {DENSE: optax.adam(1e-3), CONTROL: optax.adam(1e-3)}
    optimizers |= {name_of(allocation): gradual(allocation) for allocation in allocations}
    lowered = {name: _lowering(module, tx, model, plan) for name, tx in optimizers.items()}
    rounds = min(plan.compiles, COMPILE_AT_MOST.get(model, plan.compiles))
    with counted(f"compile {model}", 1 + rounds * len(lowered)) as done:
        for lower in lowered.values():  # what the first trace alone takes
            lower()
        lowered[DENSE]().compile()
        done("traced")
        runs = {name: lambda lower=lower: lower().compile() for name, lower in lowered.items()}
        seconds = interleaved(runs, rounds, plan.seed, clock=time.perf_counter, done=done)
    return comparison(
        name=f"compile_{model}",
        headline=f"Compilation of a training step of {model}, batch {plan.batch_size}",
        measured={name: Measured(np.asarray(own)) for name, own in seconds.items()},
        baselines=[DENSE],
        control=CONTROL,
        targets={name_of(allocation): Target(1.5) for allocation in allocations},
    )


def _lowering(
    module: nn.Module, tx: optax.GradientTransformation, model: str, plan: Plan
) -> Callable[[], jax.stages.Lowered]:
    """Traces and lowers the step anew at each call."""
    shape = plan.batch_size, *(CIFAR if model == "resnet20" else MNIST)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    labels = jax.ShapeDtypeStruct(shape[:1], jnp.int32)

    def init(key: jax.Array, images: jax.Array) -> lanes.State:
        variables = module.init(key, images)
        params = variables["params"]
        return lanes.State(params, variables.get("batch_stats", {}), tx.init(params))

    state = jax.eval_shape(init, jax.random.key(0), images)

    def lower() -> jax.stages.Lowered:
        step = train_step(module, tx)
        fresh = jax.jit(lambda *args: step(*args), donate_argnums=0)
        return fresh.lower(state, images, labels)

    return lower
