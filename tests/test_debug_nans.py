"""Under jax_debug_nans no number of ours stops a program: nan marks nothing, anywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.quick import quick
from tests.transforms import DENSE_WEIGHTS, TRANSFORMS, tiny_params

pytestmark = [
    pytest.mark.filterwarnings("ignore:no weight at all is kept"),
    pytest.mark.filterwarnings("ignore:.*keeps none of its weights"),
]
KEY = jax.random.key(0)
# outside jit, where each step is looked at: with a layer of zeros, and one of equal weights
PARAMS = {
    "zeros": jnp.zeros((4, 8)),
    "equal": jnp.ones((8, 4)),
    "kernel": jax.random.normal(KEY, (8, 8)),
    "bias": jnp.zeros(8),
}
MASKS = {
    "zeros": jnp.zeros((4, 8), bool),
    "equal": jnp.ones((8, 4), bool),
    "kernel": jnp.arange(64).reshape(8, 8) % 3 == 0,
    "bias": None,
}


@pytest.fixture(autouse=True)
def debug_nans():
    with jax.debug_nans(True):
        yield


@pytest.mark.full
@pytest.mark.parametrize("name", quick(TRANSFORMS, "gradual_global", "rigl"))
def test_transforms_outside_jit(name):
    params = tiny_params()
    transform = TRANSFORMS[name](params)
    state = transform.init(params)
    nu = optax.adam(0.1).init(params)
    for step in range(2):
        state = transform.update(
            state, params, step=jnp.int32(step), grads=params, opt_state=nu, at_end=step == 1
        )
    assert 0 <= float(jp.sparsity(state.masks)) < 1


@pytest.mark.parametrize("name", quick(DENSE_WEIGHTS))
def test_dense_weights_outside_jit(name):
    params = tiny_params()
    tx = DENSE_WEIGHTS[name](params, optax.sgd(0.1))
    tx.update(params, tx.init(params), params)


@pytest.mark.full
@pytest.mark.parametrize(
    "make",
    quick(
        [
            lambda: jp.prune(jp.magnitude, jp.uniform, lambda step: 0.5),
            lambda: jp.prune(jp.magnitude, jp.global_threshold, lambda step: 0.5 + 0.0 * step),
            lambda: jp.prune(jp.lamp(), jp.global_threshold, lambda step: 0.5),
            lambda: jp.prune(jp.gradient, jp.erk, lambda step: 0.5),
            lambda: jp.dpf(0.5),
            lambda: jp.sap(1, 2),
            lambda: jp.sap(together=True),
            lambda: jp.rigl(KEY, 0.5, allocation=jp.uniform),
            lambda: jp.set(KEY, 0.5, allocation=jp.uniform, two_sided=True),
        ]
    ),
)
def test_layers_of_zeros_and_of_equals(make):
    transform = make()
    state = transform.init(PARAMS)
    for _ in range(2):
        state = transform.update(state, PARAMS, step=jnp.int32(0), grads=PARAMS, opt_state=None)
    assert all(mask.dtype == bool for mask in jax.tree.leaves(state.masks))


CALLS = {
    "shuffle": lambda: jp.tickets.shuffle(KEY, MASKS),
    "overlap": lambda: jp.overlap(MASKS, MASKS),
    "report": lambda: jp.report(jp.apply_masks(PARAMS, {**MASKS, "zeros": None}), MASKS),
    "pq_index": lambda: [jp.tickets.pq_index(w) for w in PARAMS.values()],
    "pq_index of nothing": lambda: jp.tickets.pq_index(
        PARAMS["kernel"], masks=jnp.zeros((8, 8), bool)
    ),
    "none kept": lambda: jp.dynamic.drop(MASKS, jp.magnitude(jp.kernels(PARAMS)), 0),
    "infinite scores": lambda: jp.select(
        {"a": jnp.full((4, 4), jnp.inf), "b": jnp.full((4, 4), -jnp.inf)}, jp.global_threshold, 0.7
    ),
    "soup": lambda: jp.soup({"w": jnp.zeros((3, 4, 4))}),
}


@pytest.mark.parametrize("name", quick(CALLS))
def test_calls_outside_jit(name):
    CALLS[name]()


@pytest.mark.full
@pytest.mark.parametrize("dtype", quick([jnp.float16, jnp.float32]))
def test_an_optimizer_that_divides_zeros_by_zero(dtype):
    params = {"kernel": jnp.array([[3.0, -1.0], [2.0, -4.0]], dtype)}
    inner = optax.chain(optax.scale_by_adam(eps=0.0), optax.clip_by_global_norm(1.0))
    tx = jp.sparsify(inner, jp.fixed({"kernel": params["kernel"] > 0}))
    for update in tx.update, jax.jit(tx.update):
        updates, _ = update(params, tx.init(params), params)
        assert np.isfinite(updates["kernel"]).all()
