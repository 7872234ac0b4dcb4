"""Products and training steps of blocks beside dense ones: CPU time of the process on a CPU.

A process that may use one core is the fairest: `taskset -c 0 python -m recipes.bench --only fast`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from jaxprune.fast.block_product import Blocks, reference
from recipes.benchmarks.fast_images import images
from recipes.benchmarks.rounds import cpu_clock, timed
from recipes.benchmarks.section import Plan, Section, Target, comparison
from recipes.benchmarks.training import CONTROL, DENSE
from recipes.common.timing import Cell

KEPT = 0.1  # of the weights
LAYERS = "abc"
BATCHES = (32, 128)
SIZES = ((16, 16), (32, 32), (64, 64), (1, 64))
# dense time / time in blocks that the training step must reach, by size and batch
FASTER = {(32, 32, 32): 3.0, (32, 32, 128): 2.5, (64, 64, 32): 5.0, (64, 64, 128): 4.5}
SHARES, SHARES_BATCH = (1.0, 0.4, 0.16), 128  # of the blocks that are left
UPDATE = "an update of the masks at each step, 32 x 32"


def faster(plan: Plan) -> list[Section]:
    """Training steps, single products, and convolutions."""
    return [
        *(_steps(plan, batch) for batch in BATCHES),
        *(_products(plan, batch) for batch in (1, *BATCHES, 256)),
        *(_shares(plan, h, w) for h, w in SIZES[:2]),
        *images(plan),
    ]


def width_of(plan: Plan) -> int:
    """Inputs and outputs of a layer with as many weights as a leaf: a multiple of 64."""
    return max(64, 64 * round(math.sqrt(plan.weights / plan.leaves) / 64))


# --- training steps -------------------------------------------------------------------------------


def _steps(plan: Plan, batch: int) -> Section:
    """Adam on a network of three layers: dense, masked, and in blocks."""
    params, x, y = _network(plan, batch)
    adam = optax.adam(1e-3)
    sparse = jp.sparsify(adam, _masks(plan, 32, 32))
    cells = [
        Cell(name, partial(_dense_step, adam), lambda: _begin(adam, params), (x, y))
        for name in (DENSE, CONTROL)
    ]
    cells.append(
        Cell("masked", partial(_dense_step, sparse), lambda: _begin(sparse, params), (x, y))
    )
    for h, w in SIZES:
        cells.append(_cell(f"blocks of {h} x {w}", _masks(plan, h, w), params, x, y))
    cells.append(_cell(UPDATE, _moving(plan), params, x, y))
    targets = {
        f"blocks of {h} x {w}": Target(1 / ratio)
        for (h, w, of), ratio in FASTER.items()
        if of == batch and width_of(plan) == 1024
    }
    title = f"training steps, batch {batch}"
    measured = timed(plan, title, cells, clock=cpu_clock())
    n = width_of(plan)
    return comparison(
        name=f"fast step {batch}",
        headline=f"Training step, {len(LAYERS)} x {n} x {n}, batch {batch}: dense and in blocks",
        measured=measured,
        baselines=[DENSE],
        control=CONTROL,
        targets=targets | {UPDATE: Target(4)},
        param_bytes=sum(w.nbytes for w in jax.tree.leaves(params)),
    )


def _network(plan: Plan, batch: int) -> tuple[Any, jax.Array, jax.Array]:
    draw, n = np.random.default_rng(plan.seed).standard_normal, width_of(plan)
    array = lambda *shape: jnp.asarray(draw(shape), jnp.float32)
    params = {
        layer: {"kernel": array(n, n) / math.sqrt(n), "bias": jnp.zeros(n)} for layer in LAYERS
    }
    return params, array(batch, n), array(batch, n)


def _loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    for layer in LAYERS:
        x = x @ params[layer]["kernel"] + params[layer]["bias"][None]
        x = x if layer == LAYERS[-1] else jax.nn.relu(x)
    return ((x - y) ** 2).mean()


def _begin(tx: optax.GradientTransformation, params: Any) -> Any:
    return jax.tree.map(jnp.copy, params), tx.init(params)


def _dense_step(tx: optax.GradientTransformation, state: Any, x: jax.Array, y: jax.Array) -> Any:
    params, opt_state = state
    updates, opt_state = tx.update(jax.grad(_loss)(params, x, y), opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def _cell(name: str, masks: jp.MaskTransform, params: Any, x: jax.Array, y: jax.Array) -> Cell:
    training = jp.fast.block_training(_loss, optax.adam(1e-3), masks)
    step = lambda state, x, y: training.step(state, x, y)[0]
    return Cell(name, step, lambda: training.init(params), (x, y))


def _masks(plan: Plan, h: int, w: int) -> jp.MaskTransform:
    """Random masks of blocks, as many for each block of outputs."""
    first = lambda blocks: {name: _random(plan.seed, *x.shape) for name, x in blocks.items()}
    return jp.fast.in_blocks(h, w, jp.fixed(first))


def _moving(plan: Plan) -> jp.MaskTransform:
    """RigL that updates the masks at each step."""
    n = width_of(plan) // 32
    sparsity = 1 - max(1, round(KEPT * n)) / n
    rigl = jp.rigl(jax.random.key(plan.seed), sparsity, 0.3, jp.uniform, jp.fast.by_outputs)
    return jp.fast.in_blocks(32, 32, jp.every(1, rigl))


def _random(seed: int, outputs: int, inputs: int, share: float = KEPT) -> jax.Array:
    order = np.random.default_rng(seed).random((outputs, inputs)).argsort(1)
    return jnp.asarray(order < max(1, round(share * inputs)))


# --- products -------------------------------------------------------------------------------------


def _products(plan: Plan, batch: int) -> Section:
    """X @ kernel without a gradient, in each form."""
    n, draw = width_of(plan), np.random.default_rng(plan.seed).standard_normal
    kernel, x = (jnp.asarray(draw(s), jnp.float32) for s in ((n, n), (batch, n)))
    cells = [_product(name, lambda x, w: x @ w, x, kernel) for name in (DENSE, CONTROL)]
    for h, w in SIZES:
        kept = _random(plan.seed, n // w, n // h)
        mask = jnp.repeat(jnp.repeat(kept.T, h, 0), w, 1)
        blocks = jp.fast.to_blocks(kernel, mask, h, w)
        cells.append(_product(f"{h} x {w}, by rows", jp.fast.by_rows, x, blocks))
        if h > 1:
            build = partial(Blocks, inputs=blocks.inputs, shape=blocks.shape)
            static = lambda x, values, build=build: jp.fast.unrolled(x, build(values))
            cells.append(_product(f"{h} x {w}, unrolled", static, x, blocks.values))
    single = np.random.default_rng(plan.seed).random((n, n)) < KEPT / 2
    csr = jp.export.to_bcsr({"kernel": kernel}, {"kernel": single})["kernel"]
    cells.append(_product("single weights at 95 %, BCSR", jp.export.sparse_matmul, x, csr))
    title = f"products, batch {batch}"
    return comparison(
        name=f"fast product {batch}",
        headline=f"x @ kernel, {n} x {n} at {1 - KEPT:.0%}, batch {batch}: dense and sparse forms",
        measured=timed(plan, title, cells, clock=cpu_clock()),
        baselines=[DENSE],
        control=CONTROL,
        targets={},
    )


def _shares(plan: Plan, h: int, w: int) -> Section:
    """A product with its gradients while gradual pruning goes on: gathered, and dense again."""
    n, draw = width_of(plan), np.random.default_rng(plan.seed).standard_normal
    kernel, x = (jnp.asarray(draw(s), jnp.float32) for s in ((n, n), (SHARES_BATCH, n)))

    def slopes(form: Callable[..., jax.Array], shift: jax.Array, x: jax.Array, of: Any) -> Any:
        loss = lambda x, of: (form(x + shift, of) ** 2).mean()
        return 1e-6 * sum(g.mean() for g in jax.grad(loss, (0, 1))(x, of))

    def cell(name: str, form: Callable[..., jax.Array], of: Any) -> Cell:
        return Cell(name, partial(slopes, form), partial(jnp.zeros, ()), (x, of))

    cells = [cell(name, jnp.matmul, kernel) for name in (DENSE, CONTROL)]
    for share in SHARES:
        kept = _random(plan.seed, n // w, n // h, share)
        mask = jnp.repeat(jnp.repeat(kept.T, h, 0), w, 1)
        blocks = jp.fast.to_blocks(kernel, mask, h, w)
        for name, form in (("gathered", jp.fast.by_columns), ("dense from blocks", reference)):
            at = lambda x, values, f=form, b=blocks: f(x, Blocks(values, b.inputs, b.shape))
            cells.append(cell(f"{name}, {share:.0%} of the blocks", at, blocks.values))
    title = f"blocks of {h} x {w} by share"
    return comparison(
        name=f"fast share {h}",
        headline=f"x @ kernel and its gradients, {n} x {n}, batch {SHARES_BATCH}, {title}",
        measured=timed(plan, title, cells, clock=cpu_clock()),
        baselines=[DENSE],
        control=CONTROL,
        targets={},
    )


def _product(name: str, form: Callable[..., jax.Array], x: jax.Array, kernel: Any) -> Cell:
    """A product as a step: its inputs are shifted by its results, so that one waits for another."""

    def step(shift: jax.Array, x: jax.Array, kernel: Any) -> jax.Array:
        return 1e-6 * form(x + shift, kernel).mean()

    return Cell(name, step, partial(jnp.zeros, ()), (x, kernel))
