"""Convolutions, alone and in whole networks, in the forms that `jp.fast.fast` chooses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxprune as jp
from recipes.benchmarks.rounds import cpu_clock, timed
from recipes.benchmarks.section import Plan, Section, comparison
from recipes.benchmarks.training import CIFAR, CLASSES, CONTROL, DENSE
from recipes.common import models
from recipes.common.timing import forward

SPARSITY = 0.9
PATTERNS = {
    "blocks of 8 x 8": jp.block(8, 8, balanced=True),
    "blocks of 16 x 16": jp.block(16, 16, balanced=True),
    "inputs shared by 16 outputs": jp.block(1, 16, balanced=True),
    "single weights": jp.unstructured,
}
BATCHES = (1, 32)
NETWORKS = ("conv", "resnet20")
# of the recipes' networks: window, strides, size of the image, channels, outputs
CONVOLUTIONS = {
    "3 x 3, 16 to 16 channels, 32 x 32": (3, 1, 32, 16, 16),
    "3 x 3, 64 to 64 channels, 8 x 8": (3, 1, 8, 64, 64),
    "1 x 1, 32 to 64 channels, 16 x 16": (1, 2, 16, 32, 64),
}


def images(plan: Plan) -> list[Section]:
    """The conv net and ResNet-20 where the plan has them, and single convolutions of them."""
    found = [_network(plan, m, b) for m in plan.models if m in NETWORKS for b in BATCHES]
    if found:
        found += [_convolution(plan, name, b) for name in CONVOLUTIONS for b in BATCHES]
    return found


def _network(plan: Plan, model: str, batch: int) -> Section:
    module = models.model(model, CLASSES)
    x = np.random.default_rng(plan.seed).standard_normal((batch, *CIFAR), np.float32)
    params = jax.jit(module.init)(jax.random.key(plan.seed), x[:1])["params"]
    inner = jp.matching("*/kernel", exclude=list(models.FIRST_LAST[model]))
    apply = lambda params, x: module.apply({"params": params}, x)
    headline = f"{model}, forward, batch of {batch}: masks at {SPARSITY:.0%} by fast.fast"
    return _section(plan, f"fast {model} {batch}", headline, apply, params, inner, x)


def _convolution(plan: Plan, name: str, batch: int) -> Section:
    size, stride, image, channels, outputs = CONVOLUTIONS[name]
    draw = np.random.default_rng(plan.seed).standard_normal
    params = {"Conv_0": {"kernel": jnp.asarray(draw((size, size, channels, outputs)), jnp.float32)}}
    x = draw((batch, image, image, channels)).astype(np.float32)

    def apply(params: Any, x: jax.Array) -> jax.Array:
        dims = ("NHWC", "HWIO", "NHWC")
        kernel = params["Conv_0"]["kernel"]
        return lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=dims)

    headline = f"convolution {name}, batch of {batch}: masks at {SPARSITY:.0%} by fast.fast"
    return _section(plan, f"fast {name} {batch}", headline, apply, params, jp.kernels, x)


def _section(
    plan: Plan,
    name: str,
    headline: str,
    apply: Callable[..., Any],
    params: Any,
    prunable: Callable[[Any], Any],
    x: np.ndarray,
) -> Section:
    cells = [forward(cell, apply, params, x) for cell in (DENSE, CONTROL)]
    for pattern, of in PATTERNS.items():
        masks = jp.select(jp.magnitude(prunable(params)), jp.uniform, SPARSITY, of)
        network = jp.fast.fast(apply, params, masks, x, clock=cpu_clock())
        taken = sum(choice.form != DENSE for choice in network.choices)
        cell = f"{pattern} ({taken} of {len(network.choices)} kernels)"
        cells.append(forward(cell, network.fn, network.params, x))
    return comparison(
        name=name,
        headline=headline,
        measured=timed(plan, name, cells, clock=cpu_clock()),
        baselines=[DENSE],
        control=CONTROL,
        targets={},
    )
