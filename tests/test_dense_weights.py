"""The laws of methods whose weights stay dense: what rests, one compile, vmap, devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from jaxprune.rules import named_leaves
from tests.test_contract import OPTIMIZERS
from tests.transforms import DENSE_WEIGHTS, STEPS, loss, tiny_params

names = pytest.mark.parametrize("method", DENSE_WEIGHTS)
FROZEN = [name for name in DENSE_WEIGHTS if not name.startswith("dpf")]


def make(method, optimizer="adam"):
    return DENSE_WEIGHTS[method](tiny_params(), OPTIMIZERS[optimizer]())


def train(tx, params, steps=STEPS):
    """Params, state, and for each step the masks and the params after it."""

    def step(carry, _):
        params, state = carry
        grads = jax.grad(loss)(jp.apply_masks(params, jp.get_masks(state)))
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (optax.tree.get(state, "mask_state"), params)

    (params, state), log = jax.lax.scan(step, (params, tx.init(params)), length=steps)
    return params, state, log


def masks_of(state):
    return [np.asarray(m) for m in jax.tree.leaves(jp.get_masks(state))]


@functools.cache
def runner(method):
    """`train` as a function of the params, compiled once for all laws."""
    return jax.jit(functools.partial(train, make(method)))


@functools.cache
def reference(method):
    return runner(method)(tiny_params())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", FROZEN)
def test_what_is_frozen_keeps_its_value_and_moments_to_the_bit(method, optimizer):
    params = tiny_params()
    tx = make(method, optimizer)
    step = jax.jit(lambda p, s: tx.update(jax.grad(loss)(p), s, p))
    state, frozen = tx.init(params), 0
    for _ in range(3):
        updates, new = step(params, state)
        moved = optax.apply_updates(params, updates)
        trained = optax.tree.get(new.mask_state, "trained", new.mask_state.masks)
        outside = {m.shape: ~m for _, m in named_leaves(trained) if m is not None}
        for before, after in zip(
            jax.tree.leaves((params, state.inner_state)),
            jax.tree.leaves((moved, new.inner_state)),
            strict=True,
        ):
            if np.shape(before) in outside:
                rests = outside[before.shape]
                np.testing.assert_array_equal(after[rests], before[rests])
                frozen += int(rests.sum())
        params, state = moved, new
    assert frozen > 100
    assert (params["Dense_0"]["kernel"] != tiny_params()["Dense_0"]["kernel"]).any()


@names
def test_pruned_weights_stay_dense(method):
    params, state, _ = reference(method)
    for (_, w), (_, m) in zip(named_leaves(params), named_leaves(jp.get_masks(state)), strict=True):
        if m is not None:
            assert (w[~m] != 0).all()


@names
def test_vmapped_runs_equal_a_loop_of_runs(method):
    params, tx = tiny_params(), make(method)
    lanes = [jax.tree.map(lambda w, a=a: w * a + (1 - a) / 7, params) for a in (1.0, 0.5, -0.8)]
    stack = jax.tree.map(lambda *ws: jnp.stack(ws), *lanes)
    stacked = jax.jit(jax.vmap(lambda p: train(tx, p)[1]))(stack)
    for lane, own in enumerate(lanes):
        _, state, _ = runner(method)(own)
        for mask, alone in zip(masks_of(stacked), masks_of(state), strict=True):
            np.testing.assert_array_equal(mask[lane], alone)


@names
def test_one_compile_and_donation(method):
    params, tx, traces = tiny_params(), make(method), []

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        traces.append(1)
        grads = jax.grad(loss)(jp.apply_masks(params, jp.get_masks(state)))
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    before = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    for _ in range(STEPS):
        params, state = step(params, state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == before
    assert len(traces) == 1
    for mask, wanted in zip(masks_of(state), masks_of(reference(method)[1]), strict=True):
        np.testing.assert_array_equal(mask, wanted)


@names
def test_eight_devices_make_the_masks_of_one(method):
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))

    def shard(w):
        return jax.device_put(w, NamedSharding(mesh, P("model") if w.ndim == 2 else P()))

    _, state, _ = jax.jit(lambda p: train(make(method), p))(jax.tree.map(shard, tiny_params()))
    for mask, wanted in zip(masks_of(state), masks_of(reference(method)[1]), strict=True):
        np.testing.assert_array_equal(mask, wanted)


def test_freeze_gives_the_optimizer_no_gradient_of_what_rests():
    params = {"kernel": jnp.arange(1.0, 7).reshape(2, 3)}
    seen = []

    def update(grads, state, params=None):
        seen.append(grads["kernel"])
        return grads, state

    inner = optax.GradientTransformation(lambda params: optax.EmptyState(), update)
    masks = {"kernel": jnp.array([[True, False, False], [False, True, True]])}
    tx = jp.freeze(inner, jp.fixed(masks))
    tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    np.testing.assert_array_equal(seen[0], masks["kernel"])


@pytest.mark.parametrize("inner", [optax.adam(0.1), optax.adamw(0.1, weight_decay=0.5)])
def test_fine_tuning_a_subnetwork_leaves_the_rest_of_the_model(inner):
    params = tiny_params()
    masks = jp.select(jp.magnitude(jp.kernels(params)), jp.uniform, 0.9)
    tx = jp.freeze(inner, jp.fixed(masks))
    state, tuned = tx.init(params), params
    for _ in range(5):
        updates, state = tx.update(jax.grad(loss)(tuned), state, tuned)
        tuned = optax.apply_updates(tuned, updates)
    for path in ("Dense_0", "Dense_1"):
        changed = tuned[path]["kernel"] != params[path]["kernel"]
        np.testing.assert_array_equal(changed, masks[path]["kernel"])
    assert (tuned["Dense_0"]["bias"] != params["Dense_0"]["bias"]).all()


# --- bad input -----------------------------------------------------------------------------------


def test_freeze_names_itself_in_errors():
    params = {"kernel": jnp.ones((2, 2))}
    rule = jp.fixed({"kernel": jnp.ones((2, 2), bool)})
    with pytest.raises(TypeError, match="freeze needs a mask transform"):
        jp.freeze(optax.adam(0.1), 0.5)
    with pytest.raises(TypeError, match="freeze needs an optax optimizer"):
        jp.freeze(None, rule)
    with pytest.raises(ValueError, match="freeze needs the params"):
        tx = jp.freeze(optax.adam(0.1), rule)
        tx.update(params, tx.init(params))
    with pytest.raises(ValueError, match="given to freeze already has masks"):
        jp.freeze(jp.sparsify(optax.adam(0.1), rule), rule).init(params)
