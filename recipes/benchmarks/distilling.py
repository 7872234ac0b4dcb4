"""A step of distilled images, beside a training step's passes over as many images."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from recipes.benchmarks.rounds import timed
from recipes.benchmarks.section import Plan, Section, Target, comparison
from recipes.common import models
from recipes.common.timing import Cell

CLASSES, SHAPE, PER_CLASS = 10, (32, 32, 3), 10
ROUNDS = 6  # at most: a pass takes about a second
PASSES = "forward, backward"


def distilling(plan: Plan) -> list[Section]:
    """Distribution matching on a conv net, with and without augmentation."""
    cells, real = cells_of(plan)
    measured = timed(plan, "distill", cells, ROUNDS)
    section = comparison(
        name="distill",
        headline=(
            f"Conv net, {CLASSES} classes: a step of distilled images by {real}"
            " real ones / both passes of the network over all of them"
        ),
        measured=measured,
        baselines=[PASSES],
        control=f"{PASSES} (A/A)",
        targets={"distribution matching": Target(1.5), "the same, augmented": Target(1.5)},
    )
    return [section]


def cells_of(plan: Plan) -> tuple[list[Cell], int]:
    """The cells, and the number of real images of a class."""
    module, of_each = models.model("conv", CLASSES), max(plan.batch_size // 2, 1)
    made = min(PER_CLASS, of_each)
    keys = jax.random.split(jax.random.key(plan.seed), 3)
    real = jax.random.normal(keys[0], (CLASSES, of_each, *SHAPE))
    synthetic = jax.random.normal(keys[1], (CLASSES, made, *SHAPE))
    params = module.init(keys[2], real[0, :1])["params"]
    loss_fn = models.classification(module)
    sgd, adam = optax.sgd(1.0, momentum=0.5), optax.adam(1e-3)

    def both_passes(state: Any, real: jax.Array, synthetic: jax.Array, params: Any) -> Any:
        weights, opt_state = state
        images = jnp.concatenate([real.reshape(-1, *SHAPE), synthetic.reshape(-1, *SHAPE)])
        labels = jnp.zeros(len(images), jnp.int32)
        grads = jax.grad(lambda w: loss_fn(w, {}, images, labels)[0])(weights)
        updates, opt_state = adam.update(grads, opt_state, weights)
        return optax.apply_updates(weights, updates), opt_state

    def matching(augment: Any) -> Any:
        def step(state: Any, real: jax.Array, synthetic: jax.Array, params: Any) -> Any:
            images, opt_state, key = state
            key, drawn = jax.random.split(key)
            features = lambda seen: models.features(module, params, seen)
            how = {"augment": augment, "key": drawn if augment else None}
            loss = lambda images: jp.distill.distribution_matching(features, images, real, **how)
            updates, opt_state = sgd.update(jax.grad(loss)(images), opt_state)
            return optax.apply_updates(images, updates), opt_state, key

        return step

    weights = lambda: (jax.tree.map(jnp.copy, params), adam.init(params))
    images = lambda: (jnp.copy(synthetic), sgd.init(synthetic), jax.random.key(plan.seed))
    inputs = real, synthetic, params
    cells = [
        Cell(PASSES, both_passes, weights, inputs),
        Cell(f"{PASSES} (A/A)", both_passes, weights, inputs),
        Cell("distribution matching", matching(None), images, inputs),
        Cell("the same, augmented", matching(jp.distill.siamese()), images, inputs),
    ]
    return cells, of_each
