"""The laws of scores, also of those at initialization: a new score enters by one line."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.at_init import toy

# name -> score
SCORES = {
    "magnitude": jp.magnitude,
    "saliency": jp.saliency,
    "gradient": jp.gradient,
    "fisher": jp.fisher,
    "random": jp.random(jax.random.key(1)),
    "lamp": jp.lamp(),
    "lamp_of_saliency": jp.lamp(jp.saliency),
    "activating": lambda params, **context: jp.tickets.activating(
        params, rewind_to=jax.tree.map(lambda w: -w, params), **context
    ),
}
# name -> (params -> scores), of the network in tests/at_init/toy.py
AT_INIT = {
    "snip": functools.partial(jp.at_init.snip, toy.mlp_loss),
    "grasp": functools.partial(jp.at_init.grasp, toy.mlp_loss),
    "flow_shares": functools.partial(jp.at_init.flow_shares, toy.mlp_ones),
}
READ_ONLY = ("magnitude", "gradient")  # no product: scores in the dtype of the weights
RANDOM = ("random",)
every_score = pytest.mark.parametrize("name", [*SCORES, *AT_INIT])
of_training = pytest.mark.parametrize("name", SCORES)


def scored(name, params):
    """The scores, in the context that `sparsify` gives: gradients, optimizer state, step, extra."""
    if name in AT_INIT:
        return AT_INIT[name](params)
    grads = jax.grad(toy.mlp_loss)(params)
    nu = jax.tree.map(lambda g: jnp.square(g.astype(jnp.float32)), grads)
    state = optax.ScaleByAdamState(jnp.int32(1), grads, nu)
    weights = jp.kernels(params)
    return SCORES[name](weights, grads=grads, opt_state=state, step=jnp.int32(3), value=1.0)


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=1e-6), a, b)


PARAMS = toy.mlp_params(jax.random.key(0))


@pytest.mark.full
@every_score
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_scores_are_finite_floats_like_the_params_and_none_where_never_pruned(name, dtype):
    scores = scored(name, toy.mlp_params(jax.random.key(0), dtype))
    wanted = dtype if name in READ_ONLY else jnp.float32
    for layer, weights in PARAMS.items():
        assert scores[layer]["bias"] is None
        kernel = scores[layer]["kernel"]
        assert (kernel.shape, kernel.dtype) == (weights["kernel"].shape, wanted)
        assert np.isfinite(np.asarray(kernel, np.float32)).all()
        assert len(np.unique(np.asarray(kernel, np.float32))) > 4  # there is something to rank


@every_score
def test_under_jit_they_are_the_same(name):
    close(jax.jit(functools.partial(scored, name))(PARAMS), scored(name, PARAMS))


@pytest.mark.full
@every_score
def test_under_vmap_they_are_those_of_a_loop(name):
    lanes = [toy.mlp_params(jax.random.key(seed)) for seed in range(3)]
    stack = jax.tree.map(lambda *x: jnp.stack(x), *lanes)
    stacked = jax.vmap(functools.partial(scored, name))(stack)
    close(stacked, jax.tree.map(lambda *x: jnp.stack(x), *[scored(name, p) for p in lanes]))


@of_training
def test_half_precision_ranks_as_float32_does(name):
    """The same numbers in float16 and in float32 give the same masks."""
    half = jax.tree.map(lambda w: (w * 1e-3).astype(jnp.float16), PARAMS)
    grads = jax.tree.map(lambda w: jnp.flip(w) * jnp.float16(1e-2), half)

    def masks(dtype):
        weights, slopes = (jax.tree.map(lambda x: x.astype(dtype), t) for t in (half, grads))
        nu = jax.tree.map(lambda g: jnp.square(g.astype(jnp.float32)), slopes)
        state = optax.ScaleByAdamState(jnp.int32(1), slopes, nu)
        score = SCORES[name](jp.kernels(weights), grads=slopes, opt_state=state, step=0)
        return jp.select(score, jp.global_threshold, 0.5)

    jax.tree.map(np.testing.assert_array_equal, masks(jnp.float16), masks(jnp.float32))


@pytest.mark.full
@of_training
def test_among_equals_the_lower_index_is_kept_and_a_score_without_a_key_is_deterministic(name):
    ones = {"a": jnp.ones((3, 4)), "b": None, "empty": jnp.ones((0, 2))}
    state = optax.ScaleByAdamState(jnp.int32(1), ones, ones)
    draw = lambda: SCORES[name](ones, grads=ones, opt_state=state, step=0)
    jax.tree.map(np.testing.assert_array_equal, draw(), draw())
    kept = np.flatnonzero(jp.select(draw(), jp.uniform, 0.5)["a"]).tolist()
    assert (kept == list(range(6))) == (name not in RANDOM)
