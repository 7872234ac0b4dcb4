"""What each weight is worth: equations on numbers small enough to check by eye."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp

W = {"kernel": jnp.array([[3.0, -1.0], [2.0, -4.0]]), "bias": None}
G = {"kernel": jnp.array([[-0.5, 2.0], [0.0, 0.25]]), "bias": jnp.ones(2)}


# --- equations -----------------------------------------------------------------------------------


def test_magnitude():
    scores = jp.magnitude(W)
    assert scores["kernel"].tolist() == [[3, 1], [2, 4]] and scores["bias"] is None


def test_saliency():
    scores = jp.saliency(W, grads=G)
    assert scores["kernel"].tolist() == [[1.5, 2.0], [0.0, 1.0]] and scores["bias"] is None


def test_gradient():
    scores = jp.gradient(W, grads=G)
    assert scores["kernel"].tolist() == [[0.5, 2.0], [0.0, 0.25]] and scores["bias"] is None


def test_scores_of_complex_weights():
    w, g = {"k": jnp.array([[1.0, 2j, 3.0, 4j]])}, {"k": jnp.array([[1 + 1j, 3.0, 1j, 2j]])}
    np.testing.assert_array_equal(jp.magnitude(w)["k"], [[1, 2, 3, 4]])
    # the real part of w g: 1, 0, 0, -8
    np.testing.assert_array_equal(jp.saliency(w, grads=g)["k"], [[1, 0, 0, 8]])
    # what the loss loses, to first order, is its slope along the weight
    loss = lambda p: jnp.sum(jnp.array([[1.0, 2.0, 3.0, 4.0]]) * jnp.abs(p["k"] - 1j) ** 2)
    along = lambda t: loss({"k": w["k"] * jnp.array([[1, t, 1, 1]])})
    of_second = jp.saliency(w, grads=jax.grad(loss)(w))["k"][0, 1]
    np.testing.assert_allclose(of_second, abs(jax.grad(along)(1.0)), rtol=1e-6)
    nu = {"k": jnp.array([[1.0, 1.0, 2.0, 0.5]], jnp.complex64)}  # as adam has it
    state = optax.ScaleByAdamState(jnp.int32(1), g, nu)
    np.testing.assert_allclose(jp.fisher(w, opt_state=state)["k"], [[1, 4, 18, 8]], rtol=1e-6)
    for allocation in (jp.uniform, jp.global_threshold):
        with pytest.raises(TypeError, match=r"'k' are complex64\. Rank complex weights by"):
            jp.select(w, allocation, 0.5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_products_of_small_numbers_rank_in_half_precision_too(dtype):
    """In float16 w^2 nu and w g of usual sizes would all be zero, and kept by place."""
    w = {"k": (0.05 * jax.random.normal(jax.random.key(0), (32, 32))).astype(dtype)}
    g = {"k": (1e-5 * jax.random.normal(jax.random.key(1), (32, 32))).astype(dtype)}
    nu = jax.tree.map(lambda x: jnp.square(x.astype(jnp.float32)), g)
    state = optax.ScaleByAdamState(jnp.int32(1), g, nu)
    wide = lambda tree: {"k": np.asarray(tree["k"], np.float64)}
    saliency = np.abs(wide(w)["k"] * wide(g)["k"])
    np.testing.assert_allclose(jp.saliency(w, grads=g)["k"], saliency, rtol=1e-6)
    fisher = wide(w)["k"] ** 2 * wide(nu)["k"]
    np.testing.assert_allclose(jp.fisher(w, opt_state=state)["k"], fisher, rtol=1e-6)
    for scores, exact in (
        (jp.saliency(w, grads=g), saliency),
        (jp.fisher(w, opt_state=state), fisher),
    ):
        kept = np.asarray(jp.select(scores, jp.uniform, 0.5)["k"])
        assert exact[kept].min() >= exact[~kept].max()


@pytest.mark.full
@pytest.mark.parametrize("odd", [jnp.inf, -jnp.inf, jnp.nan])
def test_lamp_of_a_weight_that_diverged_leaves_its_layer_alone(odd):
    """It is kept, and the others score as they would without it."""
    a, b = (jax.random.normal(jax.random.key(i), (8, 8)) for i in range(2))
    scores = jp.lamp()({"a": a, "b": b.at[0, 0].set(odd)})
    without = jp.lamp()({"b": b.ravel()[1:]})["b"]
    assert jnp.isposinf(scores["b"][0, 0])
    np.testing.assert_allclose(scores["b"].ravel()[1:], without, rtol=1e-6)
    kept = jp.select(scores, jp.global_threshold, 0.5)
    assert int(kept["b"].sum()) > 20 and bool(kept["b"][0, 0])


def test_lamp_of_what_scores_minus_inf_is_zero():
    scores = jp.lamp(lambda p: p)({"a": jnp.array([1.0, -jnp.inf, 2.0])})["a"]
    np.testing.assert_allclose(scores, [0.2, 0.0, 1.0], rtol=1e-6)


@pytest.mark.parametrize(("score", "name"), [(jp.saliency, "saliency"), (jp.gradient, "gradient")])
def test_without_gradients(score, name):
    with pytest.raises(ValueError, match=f"{name} needs gradients") as error:
        score(W)
    assert f"{name}(params, grads=grads)" in str(error.value)
    assert "sparsify" in str(error.value)


# --- fisher --------------------------------------------------------------------------------------


def test_fisher_is_the_square_of_the_weight_times_the_second_moment():
    params = {"kernel": W["kernel"], "bias": jnp.ones(2)}
    tx = optax.adam(0.1, b2=0.75)
    _, state = tx.update(G, tx.init(params), params)
    scores = jp.fisher(jp.kernels(params), opt_state=state)
    # nu = 0.25 g^2: .0625, 1, 0, .015625
    np.testing.assert_allclose(scores["kernel"], [[0.5625, 1.0], [0.0, 0.25]], rtol=1e-6)
    assert scores["bias"] is None


def optimizers():
    return {
        "adamw": optax.adamw(0.1),
        "rmsprop": optax.rmsprop(0.1),
        "lamb": optax.lamb(0.1),
        "chain": optax.chain(optax.clip(1.0), optax.adam(0.1)),
        "inject": optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
        "MultiSteps": optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
        "masked": optax.masked(optax.adam(0.1), {"kernel": True, "bias": False}),
    }


@pytest.mark.parametrize("name", optimizers())
def test_fisher_finds_the_second_moment_of(name):
    params = {"kernel": W["kernel"], "bias": jnp.ones(2)}
    scores = jp.fisher(jp.kernels(params), opt_state=optimizers()[name].init(params))
    assert scores["kernel"].tolist() == [[0, 0], [0, 0]]  # at the first step nu is zero


@pytest.mark.parametrize("tx", [optax.sgd(0.1, momentum=0.9), optax.lion(0.1), optax.identity()])
def test_fisher_without_a_second_moment(tx):
    params = {"layer": W["kernel"]}
    with pytest.raises(ValueError, match="fisher needs the optimizer's second moment") as error:
        jp.fisher(params, opt_state=tx.init(params))
    assert "`nu` of 'layer', shape (2, 2)" in str(error.value)
    assert "Use adam, adamw, lamb or rmsprop" in str(error.value)


def test_fisher_of_a_leaf_that_the_optimizer_does_not_train():
    params = {"kernel": W["kernel"], "frozen": W["kernel"]}
    tx = optax.masked(optax.adam(0.1), {"kernel": True, "frozen": False})
    with pytest.raises(ValueError, match="`nu` of 'frozen'"):
        jp.fisher(params, opt_state=tx.init(params))


def test_fisher_without_a_state():
    with pytest.raises(ValueError, match="second moment `nu` of 'kernel'"):
        jp.fisher(W)


# --- random --------------------------------------------------------------------------------------


def test_random_is_its_key_and_its_step():
    tree = {"a": jnp.zeros((3, 4)), "b": None, "c": jnp.zeros((3, 4))}
    draw = lambda seed, step: jp.random(jax.random.key(seed))(tree, step=jnp.int32(step))
    first = draw(0, 0)
    assert first["b"] is None and first["a"].shape == (3, 4)
    assert ((first["a"] >= 0) & (first["a"] < 1)).all()
    np.testing.assert_array_equal(first["a"], draw(0, 0)["a"])
    for other in (first["c"], draw(1, 0)["a"], draw(0, 1)["a"]):  # leaves, seeds, steps
        assert (np.asarray(first["a"]) != np.asarray(other)).all()


def test_random_takes_keys_of_both_kinds():
    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
        assert jp.random(key)({"a": jnp.zeros(5)})["a"].shape == (5,)


def test_random_under_vmap_draws_one_a_seed():
    keys = jax.random.split(jax.random.key(0), 3)
    lanes = jax.vmap(lambda key: jp.random(key)({"a": jnp.zeros(5)})["a"])(keys)
    for lane, key in zip(lanes, keys, strict=True):
        np.testing.assert_array_equal(lane, jp.random(key)({"a": jnp.zeros(5)})["a"])


@pytest.mark.parametrize("key", [0, None, "seed", {"kernel": 1}])
def test_random_needs_a_key(key):
    with pytest.raises(TypeError, match=r"random\(key, ...\) needs a key") as error:
        jp.random(key)
    assert "jax.random.key(0)" in str(error.value) and f"got {key!r}" in str(error.value)


# --- lamp ----------------------------------------------------------------------------------------


def lamp(params):
    return jax.jit(jp.lamp())(params)


def test_lamp_of_the_card():
    scores = lamp({"a": jnp.array([3.0, 1.0, 2.0]), "b": jnp.array([0.3, 0.1, 0.2, 0.4])})
    # 1/14, 4/13; .09/.25, .01/.30, .04/.29
    np.testing.assert_allclose(scores["a"], [1.0, 0.0714, 0.3077], atol=5e-5)
    np.testing.assert_allclose(scores["b"], [0.36, 0.0333, 0.1379, 1.0], atol=5e-5)


def pruned_by_layer(scores, allocation, sparsity):
    masks = jp.select(scores, allocation, sparsity)
    return [float((~mask).mean()) for mask in jax.tree.leaves(masks)]


def test_lamp_and_magnitude_under_one_global_threshold():
    weights = {"a": jnp.array([3.0, 1.0, 2.0]), "b": jnp.array([0.3, 0.1, 0.2, 0.4])}
    keep_four = 3 / 7
    layers = pruned_by_layer(lamp(weights), jp.global_threshold, keep_four)
    np.testing.assert_allclose(layers, [1 / 3, 1 / 2], rtol=1e-6)
    # global magnitude keeps all of the first layer and one weight of the second
    magnitude = pruned_by_layer(jp.magnitude(weights), jp.global_threshold, keep_four)
    assert magnitude == [0, 0.75]


def test_lamp_empties_no_layer():
    weights = {
        "big": 100 * jnp.ones((10, 10)),
        "small": 1e-3 * jnp.arange(1.0, 101).reshape(10, 10),
    }
    masks = jp.select(lamp(weights), jp.global_threshold, 0.98)
    assert all(int(mask.sum()) >= 1 for mask in masks.values())


def test_lamp_ranks_equals_as_select_does():
    assert lamp({"a": jnp.array([1.0, 1.0, 1.0])})["a"].tolist() == pytest.approx([1, 1 / 2, 1 / 3])


def test_lamp_keeps_the_order_within_a_layer():
    s = np.abs(np.random.default_rng(0).normal(size=(6, 7)).astype(np.float32))
    scores = np.asarray(lamp({"a": jnp.asarray(s)})["a"])
    np.testing.assert_array_equal(np.argsort(s.ravel()), np.argsort(scores.ravel()))
    assert scores.max() == 1


def test_lamp_of_zeros_and_of_nothing():
    scores = lamp({"zeros": jnp.zeros(3), "empty": jnp.zeros((0, 2))})
    assert scores["zeros"].tolist() == [0, 0, 0] and scores["empty"].shape == (0, 2)


def test_lamp_of_another_score_passes_the_context():
    scores = jp.lamp(jp.gradient)(W, grads=G, step=0)
    # g^2: .25, 4, 0, .0625
    np.testing.assert_allclose(
        scores["kernel"], [[0.25 / 4.25, 1], [0, 0.0625 / 4.3125]], rtol=1e-6
    )
    with pytest.raises(ValueError, match="gradient needs gradients"):
        jp.lamp(jp.gradient)(W)


@pytest.mark.parametrize("scale", [2.0**-80, 2.0**80])
def test_lamp_does_not_depend_on_the_scale_of_a_layer(scale):
    # squares of saliencies leave float32's range long before they do
    w = jnp.array([3.0, 1.0, 2.0])
    np.testing.assert_array_equal(lamp({"a": scale * w})["a"], lamp({"a": w})["a"])
