"""Forward passes of whole networks: dense, masked, and compacted to a share of the FLOPs."""

from __future__ import annotations

import jax
import numpy as np

import jaxprune as jp
from recipes.benchmarks.rounds import timed
from recipes.benchmarks.section import Plan, Section, Target, comparison
from recipes.benchmarks.training import CIFAR, CLASSES, CONTROL, DENSE, MNIST
from recipes.common import models
from recipes.common.timing import BATCHES, forward

BUDGETS = (0.5, 0.25)  # of the dense network's FLOPs
MULTIPLE = 8  # of channels: with 27 or 45 of them a convolution is slower than with 32 or 64
MASKED = "masked to 0.25 of the FLOPs"


def forward_passes(plan: Plan) -> list[Section]:
    """One batch through each network, as trained with batch norm and evaluated."""
    return [_of(model, batch, plan) for model in plan.models for batch in BATCHES]


def _of(model: str, batch: int, plan: Plan) -> Section:
    module = models.model(model, CLASSES, norm="batch")
    shape = CIFAR if model in ("conv", "resnet20") else MNIST
    images = np.random.default_rng(plan.seed).standard_normal((batch, *shape), np.float32)
    variables = jax.jit(module.init)(jax.random.key(plan.seed), images[:1])
    structure = jp.analyze(module.apply, variables, images)
    scores = jp.structured.normalized(jp.structured.per_group(structure))(variables)

    cells = [forward(name, module.apply, variables, images) for name in (DENSE, CONTROL)]
    for budget in BUDGETS:
        kept = jp.pick(structure, scores, flops=budget, round_to=MULTIPLE)
        small = jp.compact(structure, variables, kept)
        cells.append(forward(f"compacted to {budget:g}", small.fn, small.params, images))
    masked = jp.apply_masks(variables, jp.structured.masks(structure, kept))
    cells.append(forward(MASKED, module.apply, masked, images))
    return comparison(
        name=f"compact {model} {batch}",
        headline=f"{model}, forward, batch of {batch}: compacted to a share of its FLOPs",
        measured=timed(plan, f"forward passes of {model}, batch {batch}", cells),
        baselines=[DENSE],
        control=CONTROL,
        targets={"compacted to 0.25": Target(0.4, 0.25)} if batch > 1 else {},
        param_bytes=sum(w.nbytes for w in jax.tree.leaves(variables)),
    )
