"""Whole training steps: what they take to compile, and what several seeds in one program save."""

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
from recipes.benchmarks.section import Figure, Plan, Section, Target, comparison
from recipes.benchmarks.steps import SPARSITY, name_of
from recipes.common import models, training
from recipes.common.progress import progress
from recipes.common.timing import Cell, Measured, interleaved, measure, ratio

BATCH, CLASSES = 128, 10
IMAGES = {"resnet20": (BATCH, 32, 32, 3)}  # the others see MNIST's shape
MNIST = (BATCH, 28, 28, 1)
COMPILE_AT_MOST = {"resnet20": 2}  # one takes ten seconds
ALLOCATIONS = (jp.uniform, jp.erk, jp.global_threshold)
EVERY = 10  # steps between updates of the masks
DENSE, CONTROL = "dense", "dense (A/A)"


def compile_time(plan: Plan) -> list[Section]:
    """From Python to a program: a dense training step, and sparsified ones, again and again."""
    return [_compile_time_of(model, plan) for model in plan.models]


def many_seeds(plan: Plan) -> list[Section]:
    """Training steps of LeNet-300-100 for several seeds: in one program, and each by itself."""
    module, n = models.model("lenet", CLASSES), plan.seeds
    adam, sparse = optax.adam(1e-3), _gradual(jp.global_threshold)
    singly, together = f"dense, {n} runs", "dense, 1 program"
    sparse_singly, sparse_together = f"sparse, {n} runs", "sparse, 1 program"
    cells = [
        _training_cell(singly, module, adam, plan, n),
        _training_cell(f"{singly} (A/A)", module, adam, plan, n),
        _training_cell(together, module, adam, plan),
        _training_cell(sparse_singly, module, sparse, plan, n),
        _training_cell(sparse_together, module, sparse, plan),
    ]
    measured = measure("seeds", cells, plan.repeats, plan.seed, plan.least_seconds)
    section = comparison(
        name="seeds",
        headline=f"LeNet-300-100, {n} seeds: training step, masks updated at every {EVERY}th",
        measured=measured,
        baselines=[singly, sparse_singly],
        control=f"{singly} (A/A)",
        targets={together: Target(1)},
    )
    own = ratio(measured, sparse_together, sparse_singly).median
    figure = Figure(f"seeds: {sparse_together} / {sparse_singly}", own, Target(1))
    return [section._replace(figures=[*section.figures, figure])]


def train_step(module: nn.Module, tx: optax.GradientTransformation) -> Callable[..., Any]:
    """The plain optax step on one batch."""
    loss_fn = training.classification(module)

    def step(state: training.TrainState, images: jax.Array, labels: jax.Array) -> Any:
        (_, (_, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, state.batch_stats, images, labels
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        return training.TrainState(
            optax.apply_updates(state.params, updates), batch_stats, opt_state
        )

    return step


def _gradual(allocation: jp.base.Allocation) -> optax.GradientTransformation:
    # long enough that every update of a benchmark prunes some more
    ramp = optax.polynomial_schedule(0.0, SPARSITY, power=3, transition_steps=100_000)
    return jp.sparsify(optax.adam(1e-3), jp.every(EVERY, jp.prune(jp.magnitude, allocation, ramp)))


def _training_cell(
    name: str, module: nn.Module, tx: optax.GradientTransformation, plan: Plan, runs: int = 0
) -> Cell:
    """All seeds in one program; or one of them, counted as so many `runs`."""
    seeds = 1 if runs else plan.seeds
    keys = jax.random.split(jax.random.key(plan.seed), seeds)
    images = jax.vmap(lambda key: jax.random.normal(key, MNIST))(keys)
    labels = jax.vmap(lambda key: jax.random.randint(key, (BATCH,), 0, CLASSES))(keys)
    step = train_step(module, tx)

    def state() -> Any:
        arm = training.Arm(module, lambda key: tx)
        stack = training.init(arm, training.seed_keys(plan.seed, seeds), np.zeros(MNIST))
        return jax.tree.map(lambda x: x[0], stack) if runs else stack

    if runs:
        return Cell(name, step, state, (images[0], labels[0]), period=EVERY, times=runs)
    return Cell(name, jax.vmap(step), state, (images, labels), period=EVERY)


def _compile_time_of(model: str, plan: Plan) -> Section:
    module = models.model(model, CLASSES)
    # what differs between allocations is the same for all models
    allocations = ALLOCATIONS if model == "lenet" else ALLOCATIONS[-1:]
    optimizers = {DENSE: optax.adam(1e-3), CONTROL: optax.adam(1e-3)}
    optimizers |= {name_of(allocation): _gradual(allocation) for allocation in allocations}
    lowered = {name: _lowering(module, tx, model) for name, tx in optimizers.items()}
    rounds = min(plan.compiles, COMPILE_AT_MOST.get(model, plan.compiles))
    with progress(f"compile {model}", 1 + rounds * len(lowered)) as show:
        for lower in lowered.values():  # what the first trace alone takes
            lower()
        lowered[DENSE]().compile()
        show(shown := 1, "traced")

        def done(name: str) -> None:
            nonlocal shown
            shown += 1
            show(shown, name)

        runs = {name: lambda lower=lower: lower().compile() for name, lower in lowered.items()}
        seconds = interleaved(runs, rounds, plan.seed, clock=time.perf_counter, done=done)
    return comparison(
        name=f"compile_{model}",
        headline=f"Compilation of a training step of {model}, batch {BATCH}",
        measured={name: Measured(np.asarray(own)) for name, own in seconds.items()},
        baselines=[DENSE],
        control=CONTROL,
        targets={name_of(allocation): Target(1.5) for allocation in allocations},
    )


def _lowering(
    module: nn.Module, tx: optax.GradientTransformation, model: str
) -> Callable[[], jax.stages.Lowered]:
    """Traces and lowers the step anew at each call."""
    shape = IMAGES.get(model, MNIST)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    labels = jax.ShapeDtypeStruct((BATCH,), jnp.int32)

    def init(key: jax.Array, images: jax.Array) -> training.TrainState:
        variables = module.init(key, images)
        params = variables["params"]
        return training.TrainState(params, variables.get("batch_stats", {}), tx.init(params))

    state = jax.eval_shape(init, jax.random.key(0), images)

    def lower() -> jax.stages.Lowered:
        step = train_step(module, tx)
        fresh = jax.jit(lambda *args: step(*args), donate_argnums=0)
        return fresh.lower(state, images, labels)

    return lower
