"""A soup is the mean of its members, and as sparse as they are if they share a mask."""

from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp

# three networks of two leaves, already under the mask [1, 1, 0, 0]
CHILDREN = {"kernel": jnp.array([[1.2, -0.8, 0, 0], [0.8, -1.1, 0, 0], [1.1, -1.3, 0, 0]])}
MASK = {"kernel": jnp.array([True, True, False, False])}
WRAPS = pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])


def quadratic(params):
    apart = params["kernel"] - jnp.array([1, -1, 0.5, 0.8])
    return 0.5 * jnp.sum(jnp.array([2, 1, 0.5, 1]) * apart**2)


# --- laws -----------------------------------------------------------------------------------------


def stack_of(dtype, members=5):
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "kernel": jax.random.normal(keys[0], (members, 4, 3)).astype(dtype),
        "bias": jax.random.normal(keys[1], (members, 3)).astype(dtype),
        "none": None,
    }


@WRAPS
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_it_is_the_mean_in_float32_and_returned_in_its_own_dtype(wrap, dtype):
    stack = stack_of(dtype)
    made = wrap(jp.soup)(stack)
    for name in ("kernel", "bias"):
        mean = np.asarray(stack[name], np.float64).mean(0)
        assert made[name].dtype == dtype
        tolerance = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(np.asarray(made[name], np.float64), mean, tolerance, 1e-6)
    assert made["none"] is None


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2])
def test_eight_bits_are_averaged_too(dtype):
    made = jp.soup({"k": jnp.array([[1.0, 0.0, 0.5], [3.0, 0.0, 1.0]], dtype)})["k"]
    assert made.dtype == dtype and made.astype(jnp.float32).tolist() == [2.0, 0.0, 0.75]


def test_infinity_that_all_members_share_stays():
    """Such as that of a causal mask among the params: inf - inf would be nan."""
    stack = {"k": jnp.array([[-jnp.inf, jnp.inf, 1.0], [-jnp.inf, jnp.inf, 2.0]])}
    for weights in (None, jnp.array([0.25, 0.75])):
        assert jp.soup(stack, weights)["k"][:2].tolist() == [-np.inf, np.inf]


def test_half_precision_does_not_lose_what_its_sum_would():
    many = {"w": jnp.concatenate([jnp.array([256.0]), jnp.ones(255)]).astype(jnp.bfloat16)}
    assert jp.soup(many)["w"] == jnp.bfloat16(511 / 256)  # summed in bfloat16: 1


@pytest.mark.full
@WRAPS
def test_equal_members_make_exactly_that_member(wrap):
    one = stack_of(jnp.float32, 1)
    for members in (3, 5, 7):
        alike = jax.tree.map(partial(jnp.repeat, repeats=members, axis=0), one)
        made = wrap(jp.soup)(alike)
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[0]), made, one)


@WRAPS
def test_a_weight_of_one_is_exactly_that_member_and_zero_does_not_count(wrap):
    stack = stack_of(jnp.float32)
    stack["bias"] = stack["bias"].at[1].set(jnp.nan).at[4].set(jnp.inf)
    made = wrap(jp.soup)(stack, jnp.array([0, 0, 1.0, 0, 0]))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[2]), made, stack)


def test_a_vmapped_soup_is_a_loop_of_soups():
    stacks = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), stack_of(jnp.float32))
    together = jax.vmap(jp.soup)(stacks)
    for i in range(2):
        alone = jp.soup(jax.tree.map(lambda x, i=i: x[i], stacks))
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), together, alone)


def test_weights_are_learned_by_gradient_descent():
    def loss(a):
        return quadratic(jp.soup(CHILDREN, jax.nn.softmax(a)))

    at = jnp.array([0.3, -0.2, 0.1])
    step = 1e-2
    slopes = [(loss(at + step * e) - loss(at - step * e)) / (2 * step) for e in np.eye(3)]
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(at), slopes, rtol=1e-2, atol=1e-4)


# --- numbers --------------------------------------------------------------------------------------


@WRAPS
def test_the_soup_of_a_quadratic(wrap):
    losses = [0.4425, 0.4275, 0.4375]
    np.testing.assert_allclose(jax.vmap(quadratic)(CHILDREN), losses, rtol=1e-6)
    made = wrap(jp.soup)(CHILDREN)
    np.testing.assert_allclose(made["kernel"], [3.1 / 3, -3.2 / 3, 0, 0], rtol=1e-6)
    assert float(quadratic(made)) == pytest.approx(0.3858, abs=5e-5)
    assert jnp.count_nonzero(made["kernel"]) == 2


def test_a_weighted_soup():
    made = jp.soup(CHILDREN, [0.5, 0.25, 0.25])
    np.testing.assert_allclose(made["kernel"], [1.075, -1.0, 0, 0], rtol=1e-6)


def test_of_different_masks_it_keeps_what_any_keeps():
    other = {"kernel": jnp.array([[1.2, -0.8, 0, 0], [0, -1.1, 0, 0.9]])}
    made = jp.soup(other)
    np.testing.assert_allclose(made["kernel"], [0.6, -0.95, 0, 0.45], rtol=1e-6)
    assert jnp.count_nonzero(made["kernel"]) == 3


def test_integers_are_rounded_and_equal_ones_exact():
    counters = {
        "count": jnp.array([2**30 + 1] * 3),
        "codes": jnp.array([[0, 255], [1, 254], [1, 255]], jnp.uint8),
        "steps": jnp.array([10, 20, 30]),
    }
    made = jp.soup(counters)
    assert made["count"] == 2**30 + 1
    assert made["codes"].tolist() == [1, 255] and made["codes"].dtype == jnp.uint8
    assert made["steps"] == 20


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint32, jnp.int16, jnp.uint8])
def test_the_average_of_integers_is_exact(dtype):
    """Above 2**24 float32 can't tell neighbors apart."""
    rng, info = np.random.default_rng(0), jnp.iinfo(dtype)
    cases = [[info.max, info.max - 2, info.max - 4], [info.min, info.max, info.max, info.max]]
    cases += rng.integers(info.min, info.max, (20, 5), endpoint=True).tolist()
    cases += [[info.max - 1, info.max], [info.max - 2, info.max - 1]]  # halves go to the even one
    for members in cases:
        got = int(jp.soup({"n": jnp.asarray(members, dtype)})["n"])
        assert got == round(Fraction(sum(map(int, members)), len(members))), members


def test_a_weighted_average_of_large_counters():
    steps = jnp.array([2**30 + 1, 2**30 + 101, 2**30 + 201])
    assert int(jp.soup({"n": steps}, weights=jnp.array([0.0, 0.5, 0.5]))["n"]) == 2**30 + 151
    assert int(jp.soup({"n": steps}, weights=[0.25, 0.25, 0.5])["n"]) == 2**30 + 126
    jitted = jax.jit(lambda s, w: jp.soup({"n": s}, weights=w)["n"])
    assert int(jitted(steps, jnp.array([0.25, 0.25, 0.5]))) == 2**30 + 126


def test_one_member_is_its_own_soup():
    stack = stack_of(jnp.float32, 1)
    made = jp.soup(stack)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[0]), made, stack)


# --- masks ----------------------------------------------------------------------------------------


def mask_of(sparsity, stack):
    one = jax.tree.map(lambda x: x[0], stack)
    return jp.select(jp.magnitude(jp.kernels(one)), jp.uniform, sparsity)


@WRAPS
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_children_of_one_mask_keep_its_sparsity(wrap, dtype):
    stack = stack_of(dtype)
    masks = mask_of(0.75, stack)
    masked = jax.vmap(jp.apply_masks, in_axes=(0, None))(stack, masks)
    plain = wrap(jp.soup)(masked)
    assert not plain["kernel"][~masks["kernel"]].any()
    # dense members, as those of straight-through methods, are masked first: alike
    given = wrap(lambda s, m: jp.soup(s, masks=m))(stack, masks)
    jax.tree.map(np.testing.assert_array_equal, given, plain)
    one_each = jax.tree.map(lambda m: jnp.stack([m] * 5), masks)
    each = wrap(lambda s, m: jp.soup(s, masks=m))(stack, one_each)
    jax.tree.map(np.testing.assert_array_equal, each, plain)


def test_different_masks_raise_and_say_what_is_lost():
    stack = {"a": {"kernel": jnp.ones((2, 2, 2)), "bias": jnp.ones((2, 2))}, "b": jnp.ones((2, 4))}
    masks = {
        "a": {"kernel": jnp.array([[[1, 0], [0, 0]], [[0, 1], [0, 0]]], bool), "bias": None},
        "b": jnp.array([[1, 0, 0, 1]] * 2, bool),
    }
    with pytest.raises(ValueError) as error:
        jp.soup(stack, masks=masks)
    said = str(error.value)
    assert "'a/kernel' (0.75 in the members, 0.5 in the soup)" in said
    assert "in all a sparsity of 0.625 becomes 0.5" in said
    assert "'b'" not in said and "fixed(masks)" in said
    traced = jax.jit(lambda s, m: jp.soup(s, masks=m))(stack, masks)  # can't be known
    np.testing.assert_array_equal(traced["a"]["kernel"], [[0.5, 0.5], [0, 0]])


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stack", "message"),
    [
        ({"w": jnp.zeros((0, 3))}, r"no seeds: 'w' has shape \(0, 3\)"),
        ({"w": jnp.ones((2, 3)), "b": jnp.ones((3,))}, "'w' has 2|'b' has 3"),
        ([{"w": jnp.ones((2, 3))}, {"w": jnp.ones((4, 3))}], "'0/w' has 2 and '1/w' 4.*separate"),
        ({"w": 1.0}, "'w' is a scalar"),
        ({}, "at least one array"),
    ],
    ids=["no children", "lengths", "list of trees", "scalar", "empty"],
)
def test_what_is_no_stack(stack, message):
    with pytest.raises(ValueError, match=message):
        jp.soup(stack)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 1.0, 1.0], "weights sum to 1; got a sum of 3. Divide them"),
        ([0.5, 0.5], r"one a member, \(3,\); got shape \(2,\)"),
        ([jnp.nan, 0.5, 0.5], "a sum of nan"),
        (0.5, r"got shape \(\)"),
    ],
)
def test_weights_that_make_no_average(weights, message):
    with pytest.raises(ValueError, match=message):
        jp.soup(CHILDREN, weights)


def test_masks_and_keys_have_no_average():
    with pytest.raises(TypeError, match=r"soup: 'm' is bool, .* as masks="):
        jp.soup({"m": jnp.ones((2, 3), bool)})
    with pytest.raises(TypeError, match="'k' is key<"):
        jp.soup({"k": jax.random.split(jax.random.key(0), 2)})


def test_masks_of_other_params():
    with pytest.raises(ValueError, match="'kernel'"):
        jp.soup(CHILDREN, masks={"kernel": jnp.ones(3, bool)})
    with pytest.raises(ValueError, match="these masks must be like the params"):
        jp.soup(CHILDREN, masks={"other": jnp.ones(4, bool)})


# --- along one training: optax --------------------------------------------------------------------


def test_stochastic_weight_averaging_is_a_soup_of_cycles():
    cycles = [jax.tree.map(lambda x, i=i: x[i], CHILDREN) for i in range(3)]
    swa = cycles[0]
    for n, params in enumerate(cycles):
        swa = optax.incremental_update(params, swa, 1 / (n + 1))
    np.testing.assert_allclose(swa["kernel"], jp.soup(CHILDREN)["kernel"], rtol=1e-6)
    assert jnp.count_nonzero(swa["kernel"]) == 2


def test_the_moving_average_of_optax_is_a_weighted_soup():
    ema, decay = optax.ema(0.9), 0.9
    state = ema.init(jax.tree.map(lambda x: x[0], CHILDREN))
    for i in range(3):
        params = jax.tree.map(lambda x, i=i: x[i], CHILDREN)
        averaged, state = ema.update(params, state)
    weights = np.array([decay**2, decay, 1])
    made = jp.soup(CHILDREN, weights / weights.sum())
    np.testing.assert_allclose(averaged["kernel"], made["kernel"], rtol=1e-5)
    assert jnp.count_nonzero(averaged["kernel"]) == 2


# --- running statistics ---------------------------------------------------------------------------


def test_statistics_of_a_soup_are_cumulative_not_a_moving_average():
    batches = jnp.array([[1.0], [2.0], [3.0]])  # of one example: the means are 1, 2, 3

    def update(variables, batch):  # momentum 0.1 as torch has it, from statistics that are reset
        old = variables["batch_stats"]["mean"]
        return {"batch_stats": {"mean": 0.9 * old + 0.1 * batch.mean()}}

    variables = {"params": CHILDREN, "batch_stats": {"mean": jnp.array([5.0, 6.0, 7.0])}}
    made = jp.soup(variables)
    assert made["batch_stats"]["mean"] == 6  # averaged like the rest, and of no use
    anew = jp.analysis.recalibrate(update, made, batches)
    assert float(anew["batch_stats"]["mean"]) == pytest.approx(2.0, rel=1e-6)
    moving = {"params": {}, "batch_stats": {"mean": jnp.zeros(())}}
    for batch in batches:
        moving |= update(moving, batch)
    assert float(moving["batch_stats"]["mean"]) == pytest.approx(0.5610, abs=5e-5)
