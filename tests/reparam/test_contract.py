"""The laws of every reparameterization. A method enters by one line of REPARAMETERIZATIONS."""

from collections import namedtuple
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxprune as jp
from tests.quick import by_turns, quick
from tests.transforms import loss, tiny_params

# name -> a method, given which leaves it changes
REPARAMETERIZATIONS = {
    "soft_threshold": jp.reparam.soft_threshold,
    "soft_threshold_open": partial(jp.reparam.soft_threshold, -2.0),
    "soft_threshold_exp_of_outputs": partial(jp.reparam.soft_threshold, -3.0, jnp.exp, axes=-1),
    "hard_concrete": partial(jp.reparam.weight_gates, jp.gates.hard_concrete()),
    "hard_concrete_tested": partial(
        jp.reparam.weight_gates, jp.gates.hard_concrete(), logit=5.0, deterministic=True
    ),
    "bernoulli_of_inputs": partial(jp.reparam.weight_gates, jp.gates.bernoulli(), axes=-2),
    "straight_through": partial(jp.reparam.weight_gates, jp.gates.straight_through()),
    "continuous_sparsification": partial(
        jp.reparam.weight_gates,
        lambda step: jp.gates.continuous_sparsification(1.0 + step, 0.05),
        logit=0.05,
    ),
    "lora": partial(jp.reparam.lora, jax.random.key(3), 2, 4.0),
    "masked_lora": partial(jp.reparam.masked_lora, jax.random.key(3), 2, 4.0),
    "scaled_lora": partial(jp.reparam.scaled_lora, 2),
    "doped": partial(jp.reparam.doped, jax.random.key(3), 0.8),
    "sr_ste": partial(jp.reparam.sr_ste, 2, 4, 1e-3),
    "decayed_flow": partial(jp.reparam.decayed_flow, 1, 4, lambda step: jnp.exp(-0.1 * step)),
    "stepwise_flow": partial(jp.reparam.stepwise_flow, 1, 4, 6),
    "geometric_flow": partial(
        jp.reparam.stepwise_flow, 1, 2, 6, frames=partial(jp.reparam.geometric, largest=2)
    ),
    "fake_quantization": partial(jp.reparam.fake_quantization, 6),
    "fake_quantization_of_outputs": partial(jp.reparam.fake_quantization, 5, -1, False, 0.9),
    "lsq": partial(jp.reparam.lsq, 5),
    "fixed_point": partial(jp.reparam.fixed_point, 5),
    "learned_levels": partial(jp.reparam.learned_levels, 5),
    "codebook": partial(jp.reparam.codebook, 5),
    "lr2vq": partial(jp.reparam.lr2vq, 4, 2, 2),
    "jlcm": partial(jp.reparam.jlcm, 4),
    "adadim": partial(jp.reparam.adadim, None, 6),
    "random_fold": partial(jp.reparam.random_fold, jax.random.key(3), 3.0),
    "random_fold_whole": partial(jp.reparam.random_fold, jax.random.key(3), 1),
    "random_subspace": partial(jp.reparam.random_subspace, jax.random.key(3), 10),
}
# `apply(init(params))` is `params`
IDENTICAL_AT_FIRST = (
    *("soft_threshold", "hard_concrete_tested", "straight_through", "continuous_sparsification"),
    *("lora", "masked_lora", "scaled_lora", "doped", "decayed_flow"),
    *("random_fold_whole", "random_subspace"),
)
NEEDS_KEY = ("hard_concrete", "bernoulli_of_inputs")
NEEDS_STEP = ("continuous_sparsification", "decayed_flow", "stepwise_flow", "geometric_flow")
# the parts of what is learned whose slope is zero at first: only decay moves the logits
WITHOUT_SLOPE_AT_FIRST = {
    **dict.fromkeys(("soft_threshold", "hard_concrete_tested"), ("logits",)),
    **dict.fromkeys(("lora", "masked_lora", "doped"), ("down",)),
    **dict.fromkeys(("codebook", "lr2vq"), ("starts",)),
    "adadim": ("choice",),
    "fixed_point": ("words",),
    **dict.fromkeys(("random_fold", "random_fold_whole"), ("scales",)),
}
ADAPTERS = ("lora", "masked_lora", "scaled_lora")
# kernels do not move
STILL = (*ADAPTERS, "learned_levels", "codebook", "lr2vq", "jlcm", "random_subspace")
N_OF_M = ("sr_ste", "decayed_flow", "stepwise_flow")
GRIDS = (
    "fake_quantization",
    "lsq",
    "fixed_point",
    "learned_levels",
    "codebook",
    "lr2vq",
    "jlcm",
    "adadim",
)
# what the network uses has other zeros than the weights
DENSE = ("lora", "doped", "random_subspace")
SHARED = ("random_fold", "random_fold_whole")  # the kernels are no part of what is learned
LOWERED = {"random_subspace": 0.97}  # by ten directions of 576
TOGETHER = ("random_fold",)  # kernels share numbers with each other

KEY = jax.random.key(7)
EXTRAS = {"key": KEY, "step": 0}
Pair = namedtuple("Pair", "first second")
TREES = {
    "dict": tiny_params(),
    "array": tiny_params()["Dense_0"]["kernel"],
    "list": [tiny_params()["Dense_0"]["kernel"], None, {"w": tiny_params()["Dense_1"]["kernel"]}],
    "nnx_state": nnx.state(nnx.Linear(4, 3, rngs=nnx.Rngs(0))),
    "named_tuple": Pair(tiny_params()["Dense_0"], (tiny_params()["Dense_1"],)),
}

# geometric_flow is stepwise_flow; the others are much like codebook and fake_quantization
LATER = ("geometric_flow", "lr2vq", "jlcm", "adadim", "random_fold_whole")
SOON = [name for name in REPARAMETERIZATIONS if name not in LATER]

every_method = pytest.mark.parametrize("name", quick(REPARAMETERIZATIONS, *SOON))


def kernels_of_weights(learned):
    """The kernels, and None for all that is learned beside the weights."""
    rest = [part for part in learned._fields if part != "weights"]
    none = jax.tree.map(lambda _: None, learned)
    return jp.kernels(learned._replace(**{part: getattr(none, part) for part in rest}))


def made(name, prunable=jp.kernels):
    return REPARAMETERIZATIONS[name](prunable=prunable)


def assert_same(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        np.testing.assert_allclose(x, y, **tolerance or {"rtol": 0})


@pytest.mark.full
@pytest.mark.parametrize("name", quick(IDENTICAL_AT_FIRST))
def test_at_first_the_network_uses_the_params(name):
    method = made(name)
    assert_same(method.apply(method.init(tiny_params()), **EXTRAS), tiny_params(), rtol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize(("name", "tree"), by_turns(REPARAMETERIZATIONS, TREES, "dict"))
def test_params_may_be_any_pytree(name, tree):
    method, params = made(name), TREES[tree]
    used = method.apply(method.init(params), **EXTRAS)
    assert jax.tree.structure(used) == jax.tree.structure(params)
    assert jax.tree.map(jnp.shape, used) == jax.tree.map(jnp.shape, params)


@every_method
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_only_chosen_leaves_change_and_dtypes_stay(name, dtype):
    params, method = tiny_params(dtype), made(name, jp.matching("Dense_0/kernel"))
    used = method.apply(method.init(params), **EXTRAS)
    rest = lambda tree: {**tree, "Dense_0": tree["Dense_0"]["bias"]}
    assert_same(rest(used), rest(params))
    assert used["Dense_0"]["kernel"].dtype == dtype


@every_method
def test_untouched_leaves_are_trained_as_they_are(name):
    params, method = tiny_params(), made(name)
    used = lambda bias: method.apply(
        method.init({**params, "Dense_0": {**params["Dense_0"], "bias": bias}}), **EXTRAS
    )
    slope = jax.grad(lambda bias: loss(used(bias)))(params["Dense_0"]["bias"])
    np.testing.assert_array_equal(slope, jax.grad(loss)(params)["Dense_0"]["bias"])


@every_method
def test_layers_of_a_stack_are_chosen_one_by_one(name):
    layers = jax.random.normal(KEY, (3, 4, 5))
    stacked = jp.matching(stacked={"layers/*": 0})
    stack, one = made(name, stacked), made(name)
    used = stack.apply(stack.init({"layers": {"kernel": layers}}), **EXTRAS)["layers"]["kernel"]
    assert used.shape == layers.shape
    if name not in (*NEEDS_KEY, *TOGETHER):
        for i in range(3):
            alone = one.apply(one.init({"kernel": layers[i]}), **EXTRAS)["kernel"]
            np.testing.assert_allclose(used[i], alone, rtol=1e-6)


@pytest.mark.full
@every_method
def test_vmap_over_seeds_is_a_loop(name):
    method = made(name)
    seeds = [jax.tree.map(lambda w, i=i: w + 0.1 * i, tiny_params()) for i in range(3)]
    stack, keys = jax.tree.map(lambda *w: jnp.stack(w), *seeds), jax.random.split(KEY, 3)
    one = lambda params, key: method.apply(method.init(params), key=key, step=1)
    each = [one(*seed) for seed in zip(seeds, keys, strict=True)]
    together = jax.vmap(one)(stack, keys)
    assert_same(together, jax.tree.map(lambda *w: jnp.stack(w), *each), rtol=1e-6, atol=1e-7)


@every_method
def test_jit_changes_nothing(name):
    method = made(name)
    one = lambda params, step: method.apply(method.init(params), key=KEY, step=step)
    assert_same(jax.jit(one)(tiny_params(), 1), one(tiny_params(), 1), rtol=1e-6, atol=1e-7)


@every_method
def test_shapes_are_enough(name):
    method = made(name)
    learned = method.init(tiny_params())
    shapes = jax.eval_shape(method.init, tiny_params())
    assert jp.reparam.size_of(shapes) == jp.reparam.size_of(learned)
    assert jax.tree.structure(shapes) == jax.tree.structure(learned)


def trained(method, tx, start, steps):
    """What is learned, the state, and the loss at each step."""

    def step(carry, i):
        learned, state = carry
        key = jax.random.fold_in(KEY, i)
        used = lambda learned: loss(method.apply(learned, key=key, step=i))
        value, slopes = jax.value_and_grad(used)(learned)
        updates, state = tx.update(slopes, state, learned)
        return (optax.apply_updates(learned, updates), state), value

    (learned, state), values = jax.lax.scan(step, (start, tx.init(start)), jnp.arange(steps))
    return learned, state, values


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "dtype"), by_turns(REPARAMETERIZATIONS, [jnp.float32, jnp.bfloat16])
)
def test_training_keeps_shapes_and_dtypes_and_lowers_the_loss(name, dtype):
    method = made(name)
    start = method.init(tiny_params(dtype))
    learned, _, values = trained(method, optax.adam(0.03), start, 40)
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shapes(learned) == shapes(start)
    assert np.isfinite(values).all() and values[-10:].mean() < LOWERED.get(name, 0.7) * values[0]


@every_method
def test_parts_may_have_rates_of_their_own(name):
    method = made(name)
    learned = method.init(tiny_params())
    parts = type(learned)._fields
    rates = {part: optax.sgd(1.0 if part == "weights" else 0.0) for part in parts}
    tx = optax.partition(rates, type(learned)(*parts))
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, learned), tx.init(learned), learned)
    for part in parts:
        moved = {float(u.max()) for u in jax.tree.leaves(getattr(updates, part))}
        if jax.tree.leaves(getattr(learned, part)):
            assert moved == {-1 if part == "weights" else 0}


@pytest.mark.full
@every_method
def test_gradients_reach_all_that_is_learned(name):
    method = made(name)
    learned = method.init(tiny_params())
    slopes = jax.grad(lambda learned: loss(method.apply(learned, **EXTRAS)))(learned)
    still = jax.tree.leaves(jp.kernels(slopes.weights)) if name in STILL else []
    for part in WITHOUT_SLOPE_AT_FIRST.get(name, ()):
        still += jax.tree.leaves(getattr(slopes, part))
    assert all((slope == 0).all() for slope in still)
    for slope in jax.tree.leaves(slopes):
        assert np.isfinite(slope).all()
    moves = [slope for slope in jax.tree.leaves(slopes) if not any(slope is x for x in still)]
    assert moves and all((slope != 0).any() for slope in moves)


@pytest.mark.full
@every_method
def test_sparsify_prunes_weights_and_so_the_network(name):
    method = made(name)
    start = method.init(tiny_params())
    if name in SHARED:
        pytest.skip("its masks are of the shared array: tests/reparam/test_random_fold.py")
    masks = jp.select(jp.magnitude(kernels_of_weights(start)), jp.erk, 0.75)
    learned, state, _ = trained(method, jp.sparsify(optax.adam(0.03), jp.fixed(masks)), start, 4)
    masks = jp.get_masks(state)
    assert [part for part in masks._fields if jax.tree.leaves(getattr(masks, part))] == ["weights"]
    assert float(jp.sparsity(masks.weights)) == pytest.approx(0.75, abs=1e-3)
    used = method.apply(learned, **EXTRAS)
    if name in DENSE:
        used = learned.weights
    assert_same(used, jp.apply_masks(used, masks.weights))


@every_method
def test_what_init_did_not_make_is_refused(name):
    what = name if name in (*ADAPTERS, *N_OF_M, "doped") else "weight_gates"
    what = "soft_threshold" if name.startswith("soft") else what
    what = "stepwise_flow" if name == "geometric_flow" else what
    what = name.removesuffix("_whole") if name.startswith("random") else what
    what = next((grid for grid in GRIDS if name.startswith(grid)), what)
    with pytest.raises(TypeError, match=rf"{what}.apply needs what {what}.init.* makes.*got dict"):
        made(name).apply(tiny_params(), **EXTRAS)
    with pytest.raises(ValueError, match=r"nothing to (gate|adapt|prune|quantize|share)"):
        made(name).init({"bias": jnp.ones(3)})


@pytest.mark.parametrize("name", NEEDS_KEY)
def test_what_draws_needs_a_key(name):
    method = made(name)
    learned = method.init(tiny_params())
    with pytest.raises(TypeError, match=r"needs a key of jax.random"):
        method.apply(learned, step=0)
    first, second = (
        method.apply(learned, key=jax.random.key(i))["Dense_0"]["kernel"] for i in (0, 1)
    )
    assert (first != second).any()


@pytest.mark.full
@pytest.mark.parametrize("name", NEEDS_STEP)
def test_what_has_a_schedule_needs_a_step(name):
    method = made(name)
    with pytest.raises(TypeError, match=r"function of the step.*apply\(learned, key=key, step="):
        method.apply(method.init(tiny_params()), key=KEY)
