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
from jaxprune.trees import named_leaves
from tests.quick import pairs
from tests.test_contract import OPTIMIZERS
from tests.transforms import DENSE_WEIGHTS, STEPS, loss, ramp, tiny_params

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


@pytest.mark.full
@pytest.mark.parametrize(("method", "optimizer"), pairs(FROZEN, OPTIMIZERS, "freeze_fixed", "adam"))
def test_what_is_frozen_keeps_its_value_and_moments_to_the_bit(method, optimizer):
    params = tiny_params()
    tx = make(method, optimizer)
    step = jax.jit(lambda p, s: tx.update(jax.grad(loss)(p), s, p))
    state, frozen = tx.init(params), 0
    for _ in range(3):
        updates, new = step(params, state)
        moved = optax.apply_updates(params, updates)
        trained = optax.tree.get(state.mask_state, "trained", state.mask_state.masks)
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


@pytest.mark.full
@names
def test_pruned_weights_stay_dense(method):
    params, state, _ = reference(method)
    for (_, w), (_, m) in zip(named_leaves(params), named_leaves(jp.get_masks(state)), strict=True):
        if m is not None:
            assert (w[~m] != 0).all()


@pytest.mark.full
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


@pytest.mark.full
@names
def test_eight_devices_make_the_masks_of_one(method):
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))

    def shard(w):
        return jax.device_put(w, NamedSharding(mesh, P("model") if w.ndim == 2 else P()))

    _, state, _ = jax.jit(lambda p: train(make(method), p))(jax.tree.map(shard, tiny_params()))
    for mask, wanted in zip(masks_of(state), masks_of(reference(method)[1]), strict=True):
        np.testing.assert_array_equal(mask, wanted)


@pytest.mark.full
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("method", ["dpf", "top_kast"])
def test_every_forward_pass_has_the_masks_of_its_weights(method, n):
    """What is due at step t is chosen by the weights, and by the schedule, of step t."""
    params, schedule = tiny_params(), ramp()
    if method == "dpf":
        tx = jp.keep_dense(optax.sgd(0.05, 0.9), jp.every(n, jp.dpf(schedule), stop=5))
        wanted = lambda step: jp.select(scores, jp.global_threshold, schedule(step))
    else:
        tx = jp.train_only(optax.sgd(0.05, 0.9), jp.every(n, jp.top_kast(0.8, 0.5), stop=5))
        wanted = lambda step: jp.select(scores, jp.uniform, 0.8)
    state, moved, masks = tx.init(params), 0, None
    for step in range(STEPS):
        scores, last = jp.magnitude(jp.kernels(params)), masks
        if step % n == 0 and step < 5:
            masks = wanted(step)
        elif step == 5:  # the last: at the schedule's end
            masks = wanted(STEPS)
        same = jax.tree.map(lambda a, b: bool((a == b).all()), masks, jp.get_masks(state))
        assert all(jax.tree.leaves(same)), step
        moved += last is not None and last is not masks and float(jp.overlap(last, masks)) < 1
        grads = jax.grad(loss)(jp.apply_masks(params, jp.get_masks(state)))
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    assert moved > 1


def test_keep_dense_tells_the_transform_of_the_weights_and_the_step_to_come():
    params, seen = {"kernel": jnp.arange(1.0, 7).reshape(2, 3)}, []

    def update(state, params, **context):
        seen.append({"params": params, **context})
        return state

    transform = jp.MaskTransform(jp.fixed(lambda p: {"kernel": p["kernel"] > 2}).init, update)
    tx = jp.keep_dense(optax.sgd(0.5, 0.9), transform)
    state = tx.init(params)
    updates, new = tx.update(params, state, params, value=3.0)
    np.testing.assert_array_equal(updates["kernel"], -0.5 * params["kernel"])  # all learn
    assert int(seen[0]["step"]) == 1 == int(new.step) and seen[0]["value"] == 3.0
    np.testing.assert_array_equal(seen[0]["params"]["kernel"], 0.5 * params["kernel"])
    np.testing.assert_array_equal(seen[0]["grads"]["kernel"], params["kernel"])
    assert seen[0]["opt_state"] is new.inner_state


def test_the_optimizer_in_keep_dense_is_told_the_masks_of_its_step():
    params, seen = {"kernel": jnp.array([[3.0, -1.0], [2.0, -4.0]])}, []

    def update(grads, state, params=None, *, mask_state, **extra):
        seen.append(mask_state)
        return jax.tree.map(lambda g: -9 * g, grads), state

    inner = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    tx = jp.keep_dense(inner, jp.dpf(0.5))
    state = tx.init(params)
    _, new = tx.update({"kernel": jnp.array([[0.0, 1.0], [0.0, 0.0]])}, state, params)
    assert seen[0] is state.mask_state
    np.testing.assert_array_equal(state.mask_state.masks["kernel"], [[1, 0], [0, 1]])
    np.testing.assert_array_equal(new.mask_state.masks["kernel"], [[0, 1], [0, 1]])


def test_train_only_asks_what_reads_gradients_before_the_step():
    """The first step trains nothing but what its gradients choose."""
    params = {"kernel": jnp.array([[1.0, 1.0], [1.0, 1.0]])}
    grads = {"kernel": jnp.array([[1.0, -4.0], [3.0, 0.5]])}
    tx = jp.train_only(optax.sgd(1.0), jp.prune(jp.saliency, jp.uniform, 0.5))
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_array_equal(updates["kernel"], [[0, 4], [-3, 0]])


def test_train_only_gives_the_optimizer_no_gradient_of_what_rests():
    """The sum of all gradients, ones, is that of the three weights that are trained."""
    params = {"kernel": jnp.arange(1.0, 7).reshape(2, 3)}

    def update(grads, state, params=None):
        return {"kernel": jnp.full((2, 3), grads["kernel"].sum())}, state

    inner = optax.GradientTransformation(lambda params: optax.EmptyState(), update)
    masks = {"kernel": jnp.array([[True, False, False], [False, True, True]])}
    tx = jp.train_only(inner, jp.fixed(masks))
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    np.testing.assert_array_equal(updates["kernel"], [[3, 0, 0], [0, 3, 3]])


@pytest.mark.parametrize("inner", [optax.adam(0.1), optax.adamw(0.1, weight_decay=0.5)])
def test_fine_tuning_a_subnetwork_leaves_the_rest_of_the_model(inner):
    params = tiny_params()
    masks = jp.select(jp.magnitude(jp.kernels(params)), jp.uniform, 0.9)
    tx = jp.train_only(inner, jp.fixed(masks))
    state, tuned = tx.init(params), params
    for _ in range(5):
        updates, state = tx.update(jax.grad(loss)(tuned), state, tuned)
        tuned = optax.apply_updates(tuned, updates)
    for path in ("Dense_0", "Dense_1"):
        changed = tuned[path]["kernel"] != params[path]["kernel"]
        np.testing.assert_array_equal(changed, masks[path]["kernel"])
    assert (tuned["Dense_0"]["bias"] != params["Dense_0"]["bias"]).all()


# --- bad input -----------------------------------------------------------------------------------


def test_train_only_names_itself_in_errors():
    params = {"kernel": jnp.ones((2, 2))}
    rule = jp.fixed({"kernel": jnp.ones((2, 2), bool)})
    with pytest.raises(TypeError, match="train_only needs a mask transform"):
        jp.train_only(optax.adam(0.1), 0.5)
    with pytest.raises(TypeError, match="train_only needs an optax optimizer"):
        jp.train_only(None, rule)
    with pytest.raises(ValueError, match="train_only needs the params"):
        tx = jp.train_only(optax.adam(0.1), rule)
        tx.update(params, tx.init(params))
    with pytest.raises(ValueError, match="given to train_only already has masks"):
        jp.train_only(jp.sparsify(optax.adam(0.1), rule), rule).init(params)


@pytest.mark.parametrize(
    "transform",
    [jp.dpf(0.5), jp.every(16, jp.itop(jp.dpf(0.5))), jp.top_kast(0.9, 0.8)],
    ids=["dpf", "inside others", "top_kast"],
)
def test_masks_of_dense_weights_in_a_chain_would_be_a_step_late(transform):
    params = {"kernel": jnp.ones((4, 4))}
    tx = optax.chain(jp.track_masks(transform), optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"its masks would be a step late\. Write keep_dense\("):
        tx.init(params)


def test_keep_dense_names_itself_in_errors():
    params = {"kernel": jnp.ones((4, 4))}
    with pytest.raises(TypeError, match=r"keep_dense needs a mask transform.*The optimizer comes"):
        jp.keep_dense(jp.dpf(0.5), optax.sgd(0.1))
    with pytest.raises(TypeError, match="keep_dense needs an optax optimizer"):
        jp.keep_dense(None, jp.dpf(0.5))
    with pytest.raises(ValueError, match="keep_dense needs the params"):
        tx = jp.keep_dense(optax.sgd(0.1), jp.dpf(0.5))
        tx.update(params, tx.init(params))
    with pytest.raises(ValueError, match="given to keep_dense already has masks"):
        jp.keep_dense(jp.keep_dense(optax.sgd(0.1), jp.dpf(0.5)), jp.dpf(0.5)).init(params)
    with pytest.raises(
        ValueError, match=r"keep_dense trains all weights.*give top_kast to train_only"
    ):
        jp.keep_dense(optax.sgd(0.1), jp.every(2, jp.itop(jp.top_kast(0.9, 0.8)))).init(params)
