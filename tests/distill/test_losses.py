"""Distilled data: the numbers of the papers, worked by hand, and what holds for every loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp

REAL = {"kernel": jnp.array([[1.0, 0.0], [0.0, 1.0]])}  # outputs (1, 0) and (0, 1)
OURS = {"kernel": jnp.array([[1.0, 0.0], [1.0, 2.0]])}  # outputs (1, 1) and (0, 2)


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


SYNTHETIC, IMAGES = draw(0, 3, 2, 4, 4, 1), draw(1, 3, 5, 4, 4, 1)
PARAMS = {
    "hidden": {"kernel": draw(2, 16, 6), "bias": draw(3, 6)},
    "out": {"kernel": draw(4, 6, 3)},
}


def features(params, images):
    x = images.reshape(len(images), -1) @ params["hidden"]["kernel"]
    return jnp.tanh(x + params["hidden"]["bias"][None])


def loss(params, images, labels):
    logits = features(params, images) @ params["out"]["kernel"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def shifted(key, images):
    """An augmentation that no loss may undo: the same draw for all images."""
    return images * jax.random.uniform(key, (), minval=0.5, maxval=2.0)


def matched(synthetic, real, **options):
    return jp.distill.distribution_matching(
        lambda x: features(PARAMS, x), synthetic, real, **options
    )


def gradients(synthetic, real, **options):
    return jp.distill.gradient_matching(loss, PARAMS, synthetic, real, **options)


LOSSES = {
    "distribution": matched,
    "cosine": gradients,
    "squared": lambda *a, **k: gradients(*a, distance=jp.distill.squared, **k),
    "absolute": lambda *a, **k: gradients(*a, distance=jp.distill.absolute, **k),
}


@pytest.fixture(params=LOSSES)
def of_images(request):
    """`(synthetic, real, **options) -> loss`."""
    return LOSSES[request.param]


# --- numbers --------------------------------------------------------------------------------------


def test_distances_worked_by_hand():
    assert jp.distill.cosine(REAL, OURS) == pytest.approx(1 - 1 / 2**0.5, abs=1e-5)
    assert jp.distill.squared(REAL, OURS) == 2
    assert jp.distill.absolute(REAL, OURS) == 2


def test_cosine_is_by_output_and_leaves_vectors_out():
    """Outputs scaled one by one are at no distance, inputs are. A bias counts nothing."""
    kernel, bias = draw(0, 3, 3, 2, 4), draw(1, 4)
    outputs, inputs = jnp.array([1.0, 2, 3, 4]), jnp.array([1.0, 9])
    of = lambda k: jp.distill.cosine(
        {"Conv_0": {"kernel": kernel, "bias": bias}}, {"Conv_0": {"kernel": k, "bias": -bias}}
    )
    assert of(kernel * outputs[None, None, None]) == pytest.approx(0, abs=1e-5)
    assert of(kernel * inputs[None, None, :, None]) > 0.1


def test_an_output_without_gradient_is_at_distance_1_and_has_no_nan():
    """A dead relu: torch's norm has gradient 0 there, and so has this one."""
    zero = {"kernel": OURS["kernel"].at[:, 0].set(0)}
    value, slope = jax.value_and_grad(lambda ours: jp.distill.cosine(REAL, ours))(zero)
    assert value == pytest.approx(1.0, abs=1e-5)
    assert np.isfinite(slope["kernel"]).all()


@pytest.mark.full
def test_gradient_matching_is_the_distance_of_gradients_class_by_class():
    """Not of a mixed batch."""
    wanted = 0.0
    for label in range(3):
        of = lambda x, label=label: jp.kernels(jax.grad(loss)(PARAMS, x, jnp.full(len(x), label)))
        wanted += jp.distill.cosine(of(IMAGES[label]), of(SYNTHETIC[label]))
    assert gradients(SYNTHETIC, IMAGES) == pytest.approx(float(wanted), rel=1e-5)


def test_prunable_says_which_gradients_count():
    of = lambda rule: gradients(
        SYNTHETIC, IMAGES, prunable=jp.matching(rule), distance=jp.distill.squared
    )
    both = gradients(SYNTHETIC, IMAGES, distance=jp.distill.squared)
    assert of("hidden/kernel") + of("out/kernel") == pytest.approx(float(both), rel=1e-5)


def test_distribution_matching_is_the_squared_distance_of_means():
    wanted = sum(
        ((features(PARAMS, real).mean(0) - features(PARAMS, ours).mean(0)) ** 2).sum()
        for real, ours in zip(IMAGES, SYNTHETIC, strict=True)
    )
    assert matched(SYNTHETIC, IMAGES) == pytest.approx(float(wanted), rel=1e-5)


def test_trajectory_matching_worked_by_hand():
    """One step of rate .1 at a slope of -4 goes from 0 to .4; the target is 1: .6^2."""
    move = lambda w, images, labels: -w * images.mean()
    of = lambda images, rate: jp.distill.trajectory_matching(
        move, jnp.float32(0), jnp.float32(1), images, jnp.zeros(images.shape[:2], int), rate
    )
    assert of(jnp.array([[4.0]]), 0.1) == pytest.approx(0.36)
    assert of(jnp.array([[4.0], [2.0]]), 0.1) == pytest.approx(0.16)  # .4, then .6
    assert jax.grad(of, 1)(jnp.array([[4.0]]), 0.1) == pytest.approx(-2 * 0.6 * 4)


def test_a_trajectory_of_steps_on_real_data_is_met_by_the_same_steps():
    images, labels, rate = draw(5, 4, 5, 4, 4, 1), jnp.arange(20).reshape(4, 5) % 3, 0.1
    target = PARAMS
    for x, y in zip(images, labels, strict=True):
        target = jax.tree.map(lambda w, g: w - rate * g, target, jax.grad(loss)(target, x, y))
    of = lambda rate: jp.distill.trajectory_matching(loss, PARAMS, target, images, labels, rate)
    assert of(rate) == pytest.approx(0, abs=1e-6)
    assert of(0.0) == 1
    assert of(0.05) > 0.01


def test_an_expert_that_does_not_move_is_at_infinity():
    of = lambda images: jp.distill.trajectory_matching(
        loss, PARAMS, PARAMS, images, jnp.zeros((1, 2), int), 0.1
    )
    value, slope = jax.value_and_grad(of)(SYNTHETIC[:1])
    assert value == jnp.inf
    assert np.isfinite(slope).all()


def test_herding_worked_by_hand_and_better_than_chance():
    """0, 3, 4, 9 have the mean 4: first 4, then 3 (3.5), then 0 or 9: 7/3 and 16/3, 9 is nearer."""
    assert jp.distill.herding(jnp.array([[0.0], [3.0], [4.0], [9.0]]), 3).tolist() == [2, 1, 3]
    many = draw(6, 200, 8)
    off = lambda rows: float(jnp.linalg.norm(many[rows].mean(0) - many.mean(0)))
    by_chance = [off(np.random.default_rng(i).permutation(200)[:10]) for i in range(20)]
    assert off(jp.distill.herding(many, 10)) < min(by_chance)
    assert sorted(jp.distill.herding(many, 200).tolist()) == list(range(200))


def test_multi_formation_cuts_and_enlarges():
    """Each of four parts, constant, becomes an image of that number."""
    image = jnp.repeat(jnp.repeat(jnp.array([[1.0, 2.0], [3.0, 4.0]]), 2, 0), 2, 1)[
        None, :, :, None
    ]
    made = jp.distill.multi_formation(image, 2)
    assert made.shape == (4, 4, 4, 1)
    for part, value in zip(made, (1, 2, 3, 4), strict=True):
        np.testing.assert_allclose(part, value)
    np.testing.assert_array_equal(jp.distill.multi_formation(image, 1), image)
    ramp = jnp.arange(4.0)[None, None, :, None] * jnp.ones((1, 4, 1, 1))
    row = jp.distill.multi_formation(ramp, 2)[0, 0, :, 0]  # the part 0, 1 in four numbers
    np.testing.assert_allclose(row, [0, 0.25, 0.75, 1])


# --- laws -----------------------------------------------------------------------------------------


@pytest.mark.full
def test_equal_images_have_no_distance_and_no_slope(of_images):
    """To 1e-6 in the denominator of the cosine."""
    value, slope = jax.value_and_grad(of_images)(IMAGES, IMAGES)
    other, steep = jax.value_and_grad(of_images)(SYNTHETIC, IMAGES)
    assert value < 1e-3 * other
    assert jnp.abs(slope).max() < 1e-2 * jnp.abs(steep).max()


def test_the_real_side_has_no_gradient(of_images):
    np.testing.assert_array_equal(jax.grad(of_images, 1)(SYNTHETIC, IMAGES), 0)


def test_slopes_are_those_of_differences(of_images):
    way = draw(7, *SYNTHETIC.shape)
    of = jax.jit(lambda a: of_images(SYNTHETIC + a * way, IMAGES))
    slope = jax.grad(of)(0.0)
    assert slope == pytest.approx(float(of(1e-3) - of(-1e-3)) / 2e-3, rel=0.05)


def test_both_sides_are_augmented_alike_and_classes_apart(of_images):
    key = jax.random.key(0)
    keys = jax.random.split(key, 3)
    both = [jax.vmap(shifted)(keys, x) for x in (SYNTHETIC, IMAGES)]
    assert of_images(SYNTHETIC, IMAGES, augment=shifted, key=key) == pytest.approx(
        float(of_images(*both)), rel=1e-5
    )
    assert len({float(shifted(k, jnp.ones(()))) for k in keys}) == 3


def test_seeds_at_once_are_seeds_one_by_one(of_images):
    several = jnp.stack([SYNTHETIC, 2 * SYNTHETIC])
    at_once = jax.jit(jax.vmap(of_images, in_axes=(0, None)))(several, IMAGES)
    np.testing.assert_allclose(at_once, [of_images(s, IMAGES) for s in several], rtol=1e-5)


def test_any_optimizer_trains_the_images(of_images):
    tx = optax.adam(0.05)

    def step(carry, _):
        images, state = carry
        value, slope = jax.value_and_grad(of_images)(images, IMAGES)
        updates, state = tx.update(slope, state)
        return (optax.apply_updates(images, updates), state), value

    run = jax.jit(lambda images: jax.lax.scan(step, (images, tx.init(images)), length=150)[1])
    values = run(SYNTHETIC)
    assert values[-1] < 0.6 * values[0]


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("synthetic", "real", "options", "message"),
    [
        (SYNTHETIC[:2], IMAGES, {}, "synthetic has 2 classes and real has 3"),
        (SYNTHETIC[:, :, :2], IMAGES, {}, r"synthetic example has shape \(2, 4, 1\), a real one"),
        (SYNTHETIC[:, :0], IMAGES, {}, "synthetic has no examples of a class"),
        (SYNTHETIC, IMAGES[:, :0], {}, "real has no examples of a class"),
        (SYNTHETIC[0, 0, :, :, 0], IMAGES, {}, r"got shape \(4, 4\). Give \(classes, n"),
        (SYNTHETIC, IMAGES, {"augment": shifted}, "give key="),
    ],
)
def test_images_that_do_not_fit_are_refused(of_images, synthetic, real, options, message):
    with pytest.raises(ValueError, match=message):
        of_images(synthetic, real, **options)


def test_other_mistakes_are_told():
    with pytest.raises(ValueError, match="no gradient counts"):
        gradients(SYNTHETIC, IMAGES, prunable=lambda p: jax.tree.map(lambda _: None, p))
    of = lambda images, labels, start=PARAMS, **k: jp.distill.trajectory_matching(
        loss, start, PARAMS, images, labels, 0.1, **k
    )
    with pytest.raises(ValueError, match=r"got \(3, 2, 4, 4, 1\) and \(2, 3\)"):
        of(SYNTHETIC, jnp.zeros((2, 3), int))
    with pytest.raises(ValueError, match="at least one step"):
        of(SYNTHETIC[:0], jnp.zeros((0, 2), int))
    with pytest.raises(ValueError, match="trajectory_matching: target"):
        of(SYNTHETIC, jnp.zeros((3, 2), int), start={"other": PARAMS})
    with pytest.raises(ValueError, match="give key="):
        of(SYNTHETIC, jnp.zeros((3, 2), int), augment=shifted)
    with pytest.raises(ValueError, match=r"got shape \(3, 2, 4, 4, 1\)"):
        jp.distill.herding(SYNTHETIC, 1)
    for n in (0, 5, True, 2.0):
        with pytest.raises(ValueError, match=f"of 4 examples to take, at least 1; got {n}"):
            jp.distill.herding(jnp.ones((4, 2)), n)
    for factor in (0, 3, 1.0):
        with pytest.raises(ValueError, match=f"divides 4 and 4.*got {factor}"):
            jp.distill.multi_formation(SYNTHETIC, factor)
    with pytest.raises(ValueError, match="multi_formation: images are"):
        jp.distill.multi_formation(jnp.ones((4, 4)), 2)
