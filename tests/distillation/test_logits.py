"""Losses of logits: worked numbers, slopes, and what does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune.distillation import balanced_kl, forward_kl, hinton, reverse_kl

STUDENT, TEACHER = jnp.array([[1.0, 0.0]]), jnp.array([[2.0, 0.0]])
LABELS = jnp.array([2, 0, 1])
DIVERGENCES = {"forward": forward_kl, "reverse": reverse_kl, "balanced": balanced_kl}


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


COMPILED = {name: jax.jit(f) for name, f in DIVERGENCES.items()}


@pytest.fixture(params=DIVERGENCES)
def divergence(request):
    return COMPILED[request.param]


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("temperature", "forward"), [(1.0, 0.067131), (4.0, 0.119636)])
def test_the_forward_divergence_of_two_answers(temperature, forward):
    assert forward_kl(STUDENT, TEACHER, temperature) == pytest.approx(forward, abs=1e-6)


@pytest.mark.parametrize(("temperature", "reverse"), [(1.0, 0.082608), (4.0, 16 * 0.0075934)])
def test_the_reverse_divergence_of_two_answers(temperature, reverse):
    assert reverse_kl(STUDENT, TEACHER, temperature) == pytest.approx(reverse, abs=2e-6)


def test_the_slope_of_the_forward_divergence_goes_to_that_of_centered_logits():
    """T (q - p) at T = 4; for large T the difference of the centered logits over two classes."""
    slope = jax.grad(forward_kl)(STUDENT, TEACHER, 4.0)
    np.testing.assert_allclose(slope, [[-0.24113, 0.24113]], atol=1e-5)
    np.testing.assert_allclose(jax.grad(forward_kl)(STUDENT, TEACHER, 500.0)[0, 0], -0.25, 1e-3)


def test_an_unsure_student_gets_more_of_the_forward_divergence_and_a_sure_one_of_the_reverse():
    """Entropies .5822 of the student, .3653 of the teacher: 2 * .067131 + .082608; or exchanged."""
    assert balanced_kl(STUDENT, TEACHER) == pytest.approx(2 * 0.067131 + 0.082608, abs=1e-5)
    assert balanced_kl(TEACHER, STUDENT) == pytest.approx(0.082608 + 2 * 0.067131, abs=1e-5)
    assert balanced_kl(STUDENT, TEACHER, strength=3.0) == pytest.approx(0.284001, abs=1e-5)
    both = jnp.concatenate([STUDENT, TEACHER]), jnp.concatenate([TEACHER, STUDENT])
    assert balanced_kl(*both) == pytest.approx(2 * 0.067131 + 0.082608, abs=1e-5)


def test_hinton_mixes_labels_and_teacher():
    """.1 * -log softmax(1, 0)_0 + .9 * 16 * .0074773."""
    labels = jnp.array([0])
    assert hinton(STUDENT, TEACHER, labels) == pytest.approx(0.0313262 + 0.107672, abs=1e-5)
    own, told = draw(0, 3, 4), draw(1, 3, 4)
    hard = optax.softmax_cross_entropy_with_integer_labels(own, LABELS).mean()
    assert hinton(own, told, LABELS, weight=0.0) == pytest.approx(float(hard))
    assert hinton(own, told, LABELS, 3.0, 1.0) == forward_kl(own, told, 3.0)


# --- laws -----------------------------------------------------------------------------------------


def test_equal_logits_have_no_loss_and_no_slope(divergence):
    logits = draw(0, 3, 4)
    value, slope = jax.value_and_grad(divergence)(logits, logits, 4.0)
    assert value == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(slope, 0, atol=1e-6)


def test_the_teacher_has_no_slope(divergence):
    np.testing.assert_array_equal(jax.grad(divergence, 1)(draw(0, 3, 4), draw(1, 3, 4)), 0)


def test_the_mean_counts_examples_and_the_sum_classes(divergence):
    """Axes in front are examples; padding counts nothing, not even in the number of examples."""
    own, told = draw(0, 2, 3, 4), draw(1, 2, 3, 4)
    each = jax.vmap(divergence)(own.reshape(6, 4), told.reshape(6, 4))
    assert divergence(own, told) == pytest.approx(float(np.mean(each)), rel=1e-5)
    some = jnp.array([[True, True, False], [True, False, False]])
    wanted = float(np.mean(each[np.array([0, 1, 3])]))
    assert divergence(own, told, where=some) == pytest.approx(wanted, rel=1e-5)


def test_a_class_that_neither_knows_counts_nothing(divergence):
    own, told = draw(0, 3, 4), draw(1, 3, 4)
    longer = lambda x: jnp.concatenate([x, jnp.full((3, 1), -jnp.inf)], 1)
    value, slope = jax.value_and_grad(divergence)(longer(own), longer(told))
    assert value == pytest.approx(float(divergence(own, told)), rel=1e-6)
    np.testing.assert_allclose(slope[:, :4], jax.grad(divergence)(own, told), atol=1e-6)
    np.testing.assert_array_equal(slope[:, 4], 0)


def test_half_precision_is_summed_in_float32(divergence):
    own, told = draw(0, 3, 4).astype(jnp.float16), draw(1, 3, 4).astype(jnp.float16)
    wanted = divergence(own.astype(jnp.float32), told.astype(jnp.float32))
    assert divergence(own, told) == wanted and wanted.dtype == jnp.float32


def test_traced_temperatures_and_seeds_at_once(divergence):
    own, told = draw(0, 2, 3, 4), draw(1, 2, 3, 4)
    at_once = jax.jit(jax.vmap(divergence))(own, told, jnp.array([1.0, 4.0]))
    one_by_one = [divergence(own[0], told[0], 1.0), divergence(own[1], told[1], 4.0)]
    np.testing.assert_allclose(at_once, one_by_one, rtol=1e-5)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_temperatures_that_are_not_positive(temperature):
    for divergence in DIVERGENCES.values():
        with pytest.raises(ValueError, match="temperature must be above 0; got"):
            divergence(STUDENT, TEACHER, temperature)


def test_logits_that_do_not_fit(divergence):
    with pytest.raises(ValueError, match=r"have shape \(1, 2\), the teacher's \(1, 3\).*classes"):
        divergence(STUDENT, jnp.ones((1, 3)))
    with pytest.raises(ValueError, match=r"\(1, 2\), the teacher's \(4, 2\).*the same batch"):
        divergence(STUDENT, jnp.ones((4, 2)))
    with pytest.raises(ValueError, match=r"needs logits \(..., classes\)"):
        divergence(jnp.float32(1), jnp.float32(1))


def test_other_mistakes_are_told():
    with pytest.raises(ValueError, match=r"need labels of shape \(1,\); got \(1, 2\)"):
        hinton(STUDENT, TEACHER, jnp.array([[1, 0]]))
    for weight in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="share of the loss"):
            hinton(STUDENT, TEACHER, jnp.array([0]), weight=weight)
    with pytest.raises(ValueError, match="strength must be above 0"):
        jp.distillation.balanced_kl(STUDENT, TEACHER, strength=0)
