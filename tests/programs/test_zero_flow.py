"""What is claimed to stay zero does, and what optimizers are made of is recognized."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxprune as jp
from jaxprune.programs.zero_flow import follow, run
from tests.quick import quick

# name -> (f of a masked and of a free array, whether it is zero where the first is, and whether
# the function is run otherwise for that)
FUNCTIONS = {
    "moment": (lambda x, y: 0.9 * x + 0.1 * x**2, True, False),
    "adam": (lambda x, y: x / (jnp.sqrt(x * x) + 1e-8) * y, True, True),
    "sign": (lambda x, y: jnp.sign(0.9 * x - 0.1 * x), True, False),
    "times": (lambda x, y: x * y, True, True),
    "select": (lambda x, y: jnp.where(y > 0, x, 0.0), True, False),
    "clip": (lambda x, y: jnp.clip(x, -1, 1), True, False),
    "cast": (lambda x, y: (-x).astype(jnp.bfloat16), True, False),
    "jit": (jax.jit(lambda x, y: jnp.abs(x) * y), True, True),
    "relu": (lambda x, y: jax.nn.relu(x), True, False),
    "cond": (lambda x, y: lax.cond(y.sum() > 0, lambda: x, lambda: 2 * x), True, False),
    "times a norm": (lambda x, y: x * jnp.sqrt(jnp.sum(y * y)), True, False),
    "over an eps": (lambda x, y: x / (jnp.sqrt(x) + 1e-8), True, False),
    "over zero": (lambda x, y: x / jnp.sqrt(x * x), True, True),
    "times infinity": (lambda x, y: x * lax.rsqrt(x * x), True, True),
    "over a tiny eps": (lambda x, y: x / (jnp.abs(x) + 1e-40), True, True),  # flushed to zero
    "over an array": (lambda x, y: x / y, True, True),
    "over zero in a branch": (
        lambda x, y: lax.cond(y.sum() > 0, lambda: x / jnp.abs(x), lambda: x),
        True,
        True,
    ),
    "over zero in jit": (jax.jit(lambda x, y: x / jnp.abs(x)), True, True),
    "plus": (lambda x, y: x + y, False, False),
    "constant": (lambda x, y: x + 1e-30, False, False),  # adafactor
    "floor": (lambda x, y: jnp.maximum(x, 1e-30), False, False),
    "other": (lambda x, y: y, False, False),
    "cosine": (lambda x, y: jnp.cos(x), False, False),
    "one branch": (lambda x, y: lax.cond(y.sum() > 0, lambda: x, lambda: y), False, False),
    "where zero": (lambda x, y: jnp.where(x == 0, 1.0, x), False, False),
    "mirrored": (lambda x, y: x[::-1], False, False),  # zero, but elsewhere
    "summed": (lambda x, y: jnp.cumsum(x), False, False),
    "new axis": (lambda x, y: lax.broadcast_in_dim(x, (4, 4), (0,)), False, False),
    "spread": (lambda x, y: jnp.broadcast_to(x[:1], x.shape), False, False),
    "constant one": (lambda x, y: x**0, False, False),
    "inverse": (lambda x, y: 1 / x, False, False),
    "inverse power": (lambda x, y: x**-2, False, False),
    "root": (lambda x, y: lax.rsqrt(x), False, False),
}
X, Y = np.array([0.0, 2.0, -3.0, 0.5], np.float32), np.array([4.0, -1.0, 2.0, 0.0], np.float32)


def followed(f, leaf_of, *args):
    """Of each result whether it is zero where leaf 0 is pruned, and whether f is run otherwise."""
    flow = follow(f, leaf_of, *args)
    return [leaf == 0 for leaf in flow.zero], bool(flow.plan)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_proven(name):
    f, proven, put_back = FUNCTIONS[name]
    assert followed(f, [0, None], X, Y) == ([proven], put_back)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_proven_is_true(name):
    f, proven, put_back = FUNCTIONS[name]
    # a norm that is nan spoils all weights, with or without masks
    for y in (Y, -Y, 0 * Y, *([np.nan * Y] if put_back else [])):
        flow = follow(f, [0, None], X, y)
        result = run(flow, [X != 0], jnp.asarray(X), jnp.asarray(y))
        if proven:
            assert np.asarray(result).ravel()[0] == 0
        # weights that are kept are as they were
        np.testing.assert_array_equal(
            np.ravel(result)[1:], np.ravel(f(jnp.asarray(X), jnp.asarray(y)))[1:]
        )


def test_zeros_of_two_leaves_of_one_shape_are_not_mixed():
    add = lambda x, y: (x + y, x * y)
    assert follow(add, [0, 1], X, X).zero == [None, None]
    assert follow(add, [0, 0], X, X).zero == [0, 0]
    either = lambda x, y: lax.cond(x.sum() > 0, lambda: x, lambda: y)
    assert follow(either, [0, 1], X, X).zero == [None]
    assert follow(either, [1, 1], X, X).zero == [1]


def test_each_result_by_itself():
    f = lambda state, g: {"mu": 0.9 * state["mu"] + g, "count": state["count"] + 1, "seen": g}
    state = {"count": jnp.int32(0), "mu": X}
    # leaves: count, mu, g; the results in the order of their names
    assert follow(f, [None, 0, 0], state, X).zero == [None, 0, 0]
    assert follow(f, [None, 0, None], state, X).zero == [None, None, None]


# --- optimizers -----------------------------------------------------------------------------------

# those whose moments can all be proven, so that an idle step writes none of them twice
PROVEN = {
    "adam": lambda: optax.adam(0.1),
    "adamw": lambda: optax.adamw(0.1, weight_decay=0.1),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "nesterov": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "lion": lambda: optax.lion(0.1),
    "lamb": lambda: optax.lamb(0.1),
    "rmsprop": lambda: optax.rmsprop(0.1, momentum=0.9),
    "ema": lambda: optax.chain(optax.adam(0.1), optax.ema(0.9)),
    "inject": lambda: optax.inject_hyperparams(optax.adam)(optax.linear_schedule(0.1, 0.0, 9)),
    "multi_steps": lambda: optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
    "schedule_free": lambda: optax.contrib.schedule_free_adamw(0.1),
}


@pytest.mark.parametrize("name", PROVEN)
def test_moments_that_need_not_be_masked_again(name):
    params = {"kernel": X}
    tx = optax.with_extra_args_support(PROVEN[name]())
    state = tx.init(params)
    at = [0 if np.shape(leaf) == X.shape else None for leaf in jax.tree.leaves(state)]
    flow = follow(lambda *args: tx.update(*args)[1], [0, *at, 0], params, state, params)
    assert flow.zero == at
    # an eps that is an argument may be zero
    assert bool(flow.plan) == (name == "inject")


DIVIDING = {
    "rmsprop": lambda: optax.rmsprop(0.1, eps=0.0, momentum=0.9),
    "adam and momentum": lambda: optax.chain(optax.scale_by_adam(eps=0.0), optax.trace(0.9)),
    "adam and clip": lambda: optax.chain(
        optax.scale_by_adam(eps=0.0), optax.clip_by_global_norm(1.0), optax.trace(0.9)
    ),
    "adafactor": lambda: optax.adafactor(0.1, eps=0.0, momentum=0.9),
    "multi_steps": lambda: optax.MultiSteps(
        optax.chain(optax.scale_by_adam(eps=0.0), optax.clip_by_global_norm(1.0)), 1
    ).gradient_transformation(),
    "inject_hyperparams": lambda: optax.chain(
        optax.inject_hyperparams(optax.scale_by_rms)(eps=0.0), optax.trace(0.9)
    ),
}


@pytest.mark.parametrize("dtype", quick([jnp.float32, jnp.float16, jnp.bfloat16]))
@pytest.mark.parametrize("name", quick(DIVIDING))
def test_zero_over_zero_is_zero_where_a_weight_is_pruned(name, dtype):
    """Without an eps 0 / sqrt(0) is nan: in moments, and at once in a norm over all weights."""
    params = {"kernel": jnp.array([[3.0, -1.0], [2.0, -4.0]], dtype)}
    mask = jnp.array([[True, False], [False, True]])
    for wrap in (jp.sparsify, jp.train_only):
        tx = wrap(DIVIDING[name](), jp.fixed({"kernel": mask}))
        state, update = tx.init(params), jax.jit(tx.update)
        for _ in range(2):
            updates, state = update(params, state, params)
        assert np.isfinite(np.asarray(updates["kernel"], np.float32)).all()
        for leaf in jax.tree.leaves(state.inner_state):
            assert np.isfinite(np.asarray(leaf, np.float32)).all()
            if leaf.shape == mask.shape:
                np.testing.assert_array_equal(np.asarray(leaf, np.float32)[~mask], 0)


@pytest.mark.full
def test_zeros_stay_zero_in_every_lane_and_on_every_device():
    tx = jp.sparsify(optax.adafactor(0.1, eps=0.0), jp.prune(jp.magnitude, jp.uniform, 0.5))
    update = lambda w: tx.update({"w": w}, tx.init({"w": w}), {"w": w})
    stack = jax.random.normal(jax.random.key(0), (3, 8, 16), jnp.float16)
    alone = [jax.jit(update)(w) for w in stack]
    lanes = jax.jit(jax.vmap(update))(stack)
    assert all(np.isfinite(updates["w"]).all() for updates, _ in alone)
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3)
    jax.tree.map(same, jax.tree.map(lambda *xs: np.stack(xs), *alone), lanes)
    for axis in jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit:
        mesh = jax.make_mesh((8,), ("d",), axis_types=(axis,))
        with jax.set_mesh(mesh):
            spread = jax.device_put(stack[0], jax.NamedSharding(mesh, jax.P("d")))
            updates, _ = jax.jit(update)(spread)
        same(updates["w"], alone[0][0]["w"])


def test_what_is_kept_is_the_dense_optimizers():
    """Of no eps, at the weights that are kept: zeros are kept nowhere else."""
    params = {"kernel": jnp.array([[3.0, -1.0], [2.0, -4.0]])}
    mask = jnp.array([[True, False], [False, True]])
    dense = optax.chain(optax.scale_by_adam(eps=0.0), optax.trace(0.9))
    tx = jp.sparsify(dense, jp.fixed({"kernel": mask}))
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    wanted, _ = jax.jit(dense.update)(params, dense.init(params), params)
    np.testing.assert_allclose(updates["kernel"][mask], wanted["kernel"][mask], rtol=1e-6)


def test_an_optimizer_may_hold_an_array_inside_a_trace():
    tx = jp.sparsify(optax.sgd(jnp.float32(0.5), momentum=0.9), jp.fixed({"w": X != 0}))
    step = jax.jit(lambda params: tx.update(params, tx.init(params), params)[0])
    np.testing.assert_array_equal(step({"w": jnp.asarray(X)})["w"], -0.5 * X)
