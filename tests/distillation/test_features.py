"""Losses of features: numbers worked by hand, laws, and what does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.distillation import (
    attention_transfer,
    fitnets,
    normalized,
    regressor,
    relational,
    spatial_attention,
)
from tests.distillation.test_logits import draw

OWN, TOLD = draw(0, 5, 4, 3, 2), draw(1, 5, 4, 3, 6)  # 5 examples, 4 x 3 places
MAP = regressor(jax.random.key(0), OWN, TOLD)
LOSSES = {
    "fitnets": lambda own, told: fitnets(own, told, MAP),
    "attention_transfer": attention_transfer,
    "spatial_attention": spatial_attention,
    "relational": relational,
}


LOSSES = {name: jax.jit(loss) for name, loss in LOSSES.items()}


@pytest.fixture(params=LOSSES)
def of_features(request):
    return LOSSES[request.param]


# --- numbers --------------------------------------------------------------------------------------


def test_fitnets_worked_by_hand():
    """(1, 2) becomes 1 * 2 + 2 * 1 - 1 = 3, and the teacher has 5: 4; without a map 2.5."""
    r = {"kernel": jnp.array([[2.0], [1.0]]), "bias": jnp.array([-1.0])}
    assert fitnets(jnp.array([[1.0, 2.0]]), jnp.array([[5.0]]), r) == 4
    assert fitnets(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 3.0]])) == 2.5


def test_a_regressor_can_learn_a_teacher_that_is_linear_in_the_student():
    kernel = draw(3, 2, 6)
    r = {"kernel": kernel, "bias": jnp.ones(6)}
    assert fitnets(OWN, OWN @ kernel + 1, r) == pytest.approx(0, abs=1e-12)
    told = jax.grad(fitnets, 2)(OWN, TOLD, MAP)
    assert jnp.abs(told["kernel"]).max() > 0 and jnp.abs(told["bias"]).max() > 0


def test_attention_is_normalized_and_knows_no_channels():
    """Places (3, 4) after squares (9, 16) over 18.36, against (1, 0): squares 25 over 5^2 = 25."""
    own, told = jnp.array([[[3.0], [4.0]]]), jnp.array([[[3.0, 4.0], [0.0, 0.0]]])
    unit = np.array([9, 16]) / np.hypot(9, 16)
    wanted = np.linalg.norm(unit - np.array([1, 0]))
    assert attention_transfer(own, told) == pytest.approx(wanted, rel=1e-6)
    assert attention_transfer(7 * own, told) == pytest.approx(wanted, rel=1e-6)


def test_spatial_attention_is_a_divergence_over_places():
    """Means of sizes (2, 0) and (1, 0) are the logits of the worked divergence, .067131."""
    own, told = jnp.array([[[-1.0], [0.0]]]), jnp.array([[[3.0, -1.0], [0.0, 0.0]]])
    assert spatial_attention(own, told) == pytest.approx(0.067131, abs=1e-6)
    assert spatial_attention(own, told, 4.0) == pytest.approx(0.119636, abs=1e-6)


def test_relational_worked_by_hand():
    """Distances 1, 3, 2 over 2 and 1, 2, 1 over 4/3 differ by 1/4, 0, 1/4: half their squares."""
    own, told = jnp.array([[0.0], [1.0], [3.0]]), jnp.array([[0.0], [1.0], [2.0]])
    assert relational(own, told) == pytest.approx(2 * 0.5 * 0.25**2 / 3, rel=1e-5)
    far = jnp.array([[0.0], [0.0], [0.0], [1.0]])  # distances 0 and 1 over 1/2
    near = jnp.array([[0.0], [1.0], [1.0], [1.0]])
    differs = np.array([0 - 2, 0 - 2, 2 - 2, 0 - 0, 2 - 0, 2 - 0])
    wanted = np.where(np.abs(differs) > 1, np.abs(differs) - 0.5, differs**2 / 2).mean()
    assert relational(far, near) == pytest.approx(wanted, rel=1e-5)


def test_relational_knows_no_width_no_size_and_no_rotation():
    turn = np.linalg.qr(np.asarray(draw(4, 24, 24)))[0]
    other = 3 * np.asarray(OWN).reshape(5, 24) @ turn + 2
    assert relational(OWN, other) == pytest.approx(0, abs=1e-8)


def test_normalized_terms_have_the_size_of_the_task():
    """2 + 2 + 2; the slope of a term is 2 / term times its own."""
    total = lambda x: normalized(2.0, {"a": 0.5 * x, "b": 40.0 * x**2})
    assert total(1.0) == 6
    assert jax.grad(total)(1.0) == pytest.approx(2 / 0.5 * 0.5 + 2 / 40 * 80)
    of_task = jax.grad(lambda x: normalized(x, [jnp.float32(3)]))(2.0)
    assert of_task == 1  # the weights have no gradient
    value, slope = jax.value_and_grad(lambda x: normalized(2.0, [x]))(0.0)
    assert value == 2 and slope == 0


# --- laws -----------------------------------------------------------------------------------------


def test_the_teacher_has_no_slope_and_the_student_that_of_differences(of_features):
    np.testing.assert_array_equal(jax.grad(of_features, 1)(OWN, TOLD), 0)
    way = draw(5, *OWN.shape)
    of = jax.jit(lambda a: of_features(OWN + a * way, TOLD))
    slope = float(of(1e-3) - of(-1e-3)) / 2e-3
    assert jax.grad(of)(0.0) == pytest.approx(slope, rel=0.02, abs=1e-4)


@pytest.mark.parametrize("name", ["attention_transfer", "spatial_attention", "relational"])
def test_equal_features_and_features_without_differences_have_no_nan(name):
    loss = LOSSES[name]
    value, slope = jax.value_and_grad(loss)(OWN, OWN)
    assert value == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(slope, 0, atol=1e-6)
    for size in (0.0, 0.1):
        slope = jax.grad(loss)(np.full(OWN.shape, size, np.float32), TOLD)
        assert np.isfinite(slope).all()
        assert name != "relational" or (slope == 0).all()


def test_seeds_at_once_are_seeds_one_by_one_in_half_precision_too(of_features):
    several = jnp.stack([OWN, 2 * OWN]).astype(jnp.bfloat16)
    at_once = jax.jit(jax.vmap(of_features, in_axes=(0, None)))(several, TOLD)
    assert at_once.dtype == jnp.float32
    np.testing.assert_allclose(at_once, [of_features(s, TOLD) for s in several], rtol=1e-4)


# --- bad input ------------------------------------------------------------------------------------


def test_features_that_do_not_fit(of_features):
    with pytest.raises(ValueError, match=r"\(5, 4, 3, 2\), the teacher's \(4, 4, 3, 6\)"):
        of_features(OWN, TOLD[:4])
    with pytest.raises(ValueError, match=r"the teacher's \(5,\)"):
        of_features(OWN, jnp.ones(5))


@pytest.mark.parametrize("name", ["fitnets", "attention_transfer", "spatial_attention"])
def test_places_that_differ(name):
    with pytest.raises(ValueError, match=r"channels only.*\(5, 4, 3, 2\), the teacher's \(5, 2"):
        LOSSES[name](OWN, TOLD[:, :2])


def test_attention_needs_places():
    for loss in (attention_transfer, spatial_attention):
        with pytest.raises(ValueError, match=r"got shape \(5, 2\). For vectors take"):
            loss(OWN[:, 0, 0], TOLD[:, 0, 0])
    with pytest.raises(ValueError, match="temperature must be above 0"):
        spatial_attention(OWN, TOLD, 0.0)


def test_other_mistakes_are_told():
    with pytest.raises(ValueError, match=r"2 channels and the teacher 6.*regressor\(key"):
        fitnets(OWN, TOLD)
    with pytest.raises(ValueError, match=r"a regressor from 2 to 6 channels.*got \{'kernel': \(6"):
        fitnets(OWN, TOLD, {"kernel": jnp.ones((6, 2)), "bias": jnp.ones(6)})
    with pytest.raises(TypeError, match="key"):
        regressor(0, OWN, TOLD)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        relational(OWN[:1], TOLD[:1])
    with pytest.raises(ValueError, match="there are no terms"):
        normalized(1.0, [])
    with pytest.raises(ValueError, match="an array of float32 of shape"):
        normalized(1.0, [jnp.ones(3)])
