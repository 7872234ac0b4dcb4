"""The loss on the line between two networks: exact at its ends, then worked numbers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune.analysis import instability, lerp, loss_along

double_well = lambda w: (w**2 - 1) ** 2  # two minima, at -1 and 1, with a barrier of 1 between


def network(key, dtype=jnp.float32):
    keys = jax.random.split(key, 2)
    return {
        "kernel": jax.random.normal(keys[0], (6, 5), dtype),
        "bias": jax.random.normal(keys[1], (5,), dtype),
    }


A, B = network(jax.random.key(1)), network(jax.random.key(2))
X = jax.random.normal(jax.random.key(3), (16, 6))


def outputs(params):
    return jnp.tanh(X @ params["kernel"] + params["bias"][None])


def loss(params):
    return jnp.mean((outputs(params) - 1) ** 2)


def two_losses(params):
    return {"square": loss(params), "absolute": jnp.mean(jnp.abs(outputs(params) - 1))}


# --- laws ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_lerp_is_exact_at_its_ends_and_between_equals(dtype):
    a, b = network(jax.random.key(1), dtype), network(jax.random.key(2), dtype)
    equal = partial(jax.tree.map, np.testing.assert_array_equal)
    for alpha in (0.1, 0.3, 0.5, 0.7):
        equal(jax.jit(lerp)(a, a, alpha), a)
        assert lerp(a, b, alpha)["kernel"].dtype == dtype
    equal(jax.jit(lerp)(a, b, 0.0), a)
    equal(jax.jit(lerp)(a, b, 1.0), b)


def test_lerp_is_between():
    a, b = np.asarray(A["kernel"], np.float64), np.asarray(B["kernel"], np.float64)
    for alpha in (0.2, 0.5, 0.9):
        between = lerp(A, B, alpha)["kernel"]
        np.testing.assert_allclose(between, (1 - alpha) * a + alpha * b, atol=1e-6)


def test_lerp_keeps_what_is_pruned_in_both_at_zero():
    # weights outside one common mask are zero on the whole line: the sparsity stays
    common = {"kernel": jax.random.bernoulli(jax.random.key(4), 0.4, (6, 5)), "bias": None}
    a, b = jp.apply_masks(A, common), jp.apply_masks(B, common)
    for alpha in np.linspace(0, 1, 7):
        kernel = lerp(a, b, alpha)["kernel"]
        np.testing.assert_array_equal(kernel != 0, common["kernel"])
    # of two masks it is the union
    other = {"kernel": ~common["kernel"].at[0].set(False), "bias": None}
    between = lerp(a, jp.apply_masks(B, other), 0.5)["kernel"]
    np.testing.assert_array_equal(between != 0, common["kernel"] | other["kernel"])


def test_lerp_keeps_none():
    assert lerp({"w": 1.0, "b": None}, {"w": 3.0, "b": None}, 0.5) == {"w": 2.0, "b": None}


@pytest.mark.parametrize("height", [jp.barrier, instability])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_equal_networks_have_no_barrier_at_all(height, wrap):
    measured = wrap(partial(height, two_losses))(A, A)
    assert {name: float(value) for name, value in measured.items()} == {"square": 0, "absolute": 0}


@pytest.mark.parametrize("height", [jp.barrier, instability])
def test_there_and_back_is_the_same(height):
    there, back = height(loss, A, B), height(loss, B, A)
    np.testing.assert_allclose(there, back, rtol=1e-5, atol=1e-6)


def test_a_dict_of_losses_is_each_loss():
    alphas, values = loss_along(two_losses, A, B, 5)
    assert alphas.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert values["square"].shape == values["absolute"].shape == (5,)
    np.testing.assert_allclose(values["square"], loss_along(loss, A, B, 5)[1], rtol=1e-6)
    np.testing.assert_allclose(
        jp.barrier(two_losses, A, B)["square"], jp.barrier(loss, A, B), rtol=1e-5, atol=1e-7
    )


def test_jit_and_vmap_give_what_python_gives():
    expected = instability(two_losses, A, B)
    traced = jax.jit(partial(instability, two_losses))(A, B)
    one_more = jax.tree.map(lambda x: jnp.stack([x, x]), (A, B))
    lanes = jax.vmap(partial(instability, two_losses))(*one_more)
    for name, value in expected.items():
        np.testing.assert_allclose(traced[name], value, rtol=1e-5)
        np.testing.assert_allclose(lanes[name], [value, value], rtol=1e-5)


def test_the_loss_is_traced_once_for_all_pairs():
    traced = []

    def counted(params):
        traced.append(1)
        return loss(params)

    for key in range(3):
        jp.barrier(counted, A, network(jax.random.key(key)), 5)
        instability(counted, A, network(jax.random.key(key)), 7)
    assert len(traced) == 1


def test_inside_jit_it_is_one_loop():
    text = jax.jit(partial(jp.barrier, loss)).lower(A, B).as_text()
    assert text.count("stablehlo.dot_general") == 1 and "stablehlo.while" in text


def test_a_barrier_has_a_gradient():
    slope = jax.grad(lambda w: jp.barrier(double_well, w, 1.0))(-0.9)
    assert np.isfinite(slope) and slope != 0


# --- worked numbers ------------------------------------------------------------------------------


def test_one_basin_has_instability_but_no_barrier():
    square = lambda w: w**2
    assert float(instability(square, -0.5, 1.0)) == 0.375  # 1 - (0.25 + 1) / 2
    assert float(jp.barrier(square, -0.5, 1.0)) == 0


def test_two_wells_have_a_barrier_of_one():
    assert float(jp.barrier(double_well, -1.0, 1.0)) == 1
    assert float(instability(double_well, -1.0, 1.0)) == 1


def test_a_grid_without_the_middle_misses_the_peak():
    even = np.linspace(0, 1, 30)
    assert float(jp.barrier(double_well, -1.0, 1.0, even)) == pytest.approx(0.9976, abs=1e-4)


def test_alphas_of_ones_own():
    assert float(jp.barrier(double_well, -1.0, 1.0, [0, 0.5, 1])) == 1
    alphas, values = loss_along(double_well, -1.0, 1.0, jnp.array([0.5, 2.0]))  # and beyond
    assert alphas.tolist() == [0.5, 2] and values.tolist() == [1, 64]


def test_a_straight_slope_is_no_barrier():
    slope = lambda w: 3.0 * w
    assert float(jp.barrier(slope, 0.0, 1.0)) == pytest.approx(0, abs=1e-6)
    assert float(instability(slope, 0.0, 1.0)) == 1.5


def test_counts_of_errors_are_losses_too():
    errors = lambda params: jnp.sum(outputs(params) < 0)
    assert float(instability(errors, A, B)) == max(
        int(errors(lerp(A, B, alpha))) for alpha in np.linspace(0, 1, 11, dtype=np.float32)
    ) - 0.5 * (int(errors(A)) + int(errors(B)))


def test_another_path():
    around = lambda a, b, alpha: lerp(a, b, alpha) + 100.0 * alpha * (1 - alpha)
    assert float(jp.barrier(lambda w: w, 0.0, 0.0, path=around)) == 25


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "kind", "fragment"),
    [
        (10, ValueError, "points must be odd, so that the middle is one of them, and at least 3"),
        (10, ValueError, "got 10. Take 11"),
        (1, ValueError, "got 1. Take 3"),
        (-5, ValueError, "got -5. Take 3"),
        (np.int64(2), ValueError, "got 2. Take 3"),
        (11.0, TypeError, "points is an odd int, or an array of alphas; got 11.0."),
        (True, TypeError, "got True"),
        (None, TypeError, "got None"),
        ("11", TypeError, "got '11'"),
        (np.zeros((2, 2)), ValueError, "alphas are an array (points,); got one of shape (2, 2)"),
        ([], ValueError, "of shape (0,)"),
        ([0.0, 0.5, 0.9], ValueError, "alphas that start with 0 and end with 1, at least 3; got"),
        ([0.0, 1.0], ValueError, "got [0.0, 1.0]"),
    ],
)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_points_that_make_no_path(points, kind, fragment, wrap):
    with pytest.raises(kind) as error:
        wrap(lambda a, b: jp.barrier(double_well, a, b, points))(-1.0, 1.0)
    assert fragment in str(error.value)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_loss_that_is_a_vector(wrap):
    with pytest.raises(ValueError, match="the loss must be a scalar; it has shape") as error:
        wrap(partial(jp.barrier, outputs))(A, B)
    assert "(16, 5). Take its mean." in str(error.value)
    with pytest.raises(ValueError, match="the loss 'wrong' must be a scalar"):
        wrap(partial(jp.barrier, lambda w: {"right": loss(w), "wrong": outputs(w)}))(A, B)
    with pytest.raises(ValueError, match="or a tree of scalars; got None"):
        wrap(partial(jp.barrier, lambda w: None))(A, B)


@pytest.mark.parametrize(
    ("bad", "fragments"),
    [
        (lambda w: jnp.log(jnp.abs(w) - 0.1), ["the loss is nan at alpha = 0.5"]),
        (lambda w: {"error": w, "loss": jnp.sqrt(w)}, ["the loss 'loss' is nan at alpha = 0:"]),
        (lambda w: 1 / (1 - w), ["the loss is inf at alpha = 1:", "that network has diverged"]),
    ],
)
def test_a_loss_that_is_not_finite_says_where(bad, fragments):
    with pytest.raises(ValueError) as error:
        jp.barrier(bad, -1.0, 1.0)
    for fragment in fragments:
        assert fragment in str(error.value)
    traced = jax.jit(partial(jp.barrier, bad))(-1.0, 1.0)  # there it stays visible
    assert not all(np.isfinite(value) for value in jax.tree.leaves(traced))


@pytest.mark.parametrize(
    ("other", "seen"),
    [
        ({"kernel": B["kernel"]}, "missing: 'bias'"),
        (B | {"kernel": jnp.ones((6, 4))}, "'kernel' has shape (6, 4), wanted (6, 5)"),
        (B | {"scale": jnp.ones(5)}, "not in the params: 'scale'"),
        (B | {"bias": None}, "missing: 'bias'"),
        (tuple(B.values()), "missing: 'bias', 'kernel'; not in the params: '0', '1'"),
    ],
    ids=["short", "wrong shape", "long", "None", "other containers"],
)
def test_networks_that_differ(other, seen):
    for measure in (partial(jp.barrier, loss), partial(lerp, alpha=0.5)):
        with pytest.raises(ValueError) as error:
            measure(A, other)
        assert f"the second network must be like the params: {seen}. Take both" in str(error.value)


def test_networks_in_other_containers():
    with pytest.raises(ValueError, match=r"it is PyTreeDef\(\(\*, \*\)\), wanted PyTreeDef\(\[\*"):
        lerp([1.0, 2.0], (1.0, 2.0), 0.5)


def test_what_has_nothing_between():
    masks = {"kernel": A["kernel"] > 0, "bias": None}
    with pytest.raises(TypeError, match="'kernel' is bool"):
        lerp(masks, masks, 0.5)
    state = optax.adam(1e-3).init(A)
    with pytest.raises(TypeError, match=r"'0/count' is int32\. Interpolate the params alone"):
        lerp(state, state, 0.5)


@pytest.mark.parametrize(
    ("a", "b", "alpha", "between"),
    [
        (jnp.inf, jnp.inf, 0.25, jnp.inf),
        (-jnp.inf, -jnp.inf, 0.0, -jnp.inf),
        (1.0, jnp.inf, 0.0, 1.0),
        (jnp.inf, 1.0, 1.0, 1.0),
        (-3e38, 3e38, 0.0, -3e38),
        (-3e38, 3e38, 0.5, 0.0),
    ],
)
def test_lerp_is_exact_where_the_difference_is_not_finite(a, b, alpha, between):
    np.testing.assert_array_equal(lerp(jnp.float32(a), jnp.float32(b), alpha), jnp.float32(between))
