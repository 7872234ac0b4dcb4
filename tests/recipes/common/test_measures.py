"""What the studies measure: all of a split, whatever the batches; and by which rule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from recipes.common import measures, models, report
from recipes.common.data import Dataset, Split
from recipes.common.folder import RecipeError


def split(examples, seed=0):
    generator = np.random.default_rng(seed)
    images = generator.normal(size=(examples, 8, 8, 1)).astype(np.float32)
    return Split(images, generator.integers(0, 10, examples).astype(np.int32))


@pytest.mark.full
@pytest.mark.parametrize("batch_size", [7, 32, 100, 1000])
def test_measure_is_over_all_examples(batch_size):
    module, test = models.model("mlp", 10), split(100)
    variables = module.init(jax.random.key(0), test.images)
    logits = module.apply(variables, test.images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(test.labels))
    measured = jax.jit(measures.measure_on(module, test, batch_size))(variables)
    assert float(measured["error"]) == pytest.approx(np.mean(logits.argmax(-1) != test.labels))
    assert float(measured["loss"]) == pytest.approx(float(losses.mean()), rel=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("model", ["mlp", "conv"])
def test_what_lies_between_networks_is_measured_on_test_data(model):
    """On the first so many examples, and never on those of training."""
    config = measures.PathSettings(model=model, norm="batch", test_examples=20, batch_size=16)
    module, train, images = models.model(model, 10, "batch", 0.25), split(48, 1), split(30).images
    variables = module.init(jax.random.key(0), images)
    own = variables
    if model == "conv":  # its statistics are those of the first training examples
        own = measures.recalibration(module, train, 16)(variables)
    answers = np.array(module.apply(own, images).argmax(-1), np.int32)
    answers[20:] = (answers[20:] + 1) % 10  # beyond the examples that are asked for all are wrong
    dataset = Dataset(train, Split(images, answers), 10, np.zeros(1), np.ones(1))
    measure = measures.measure_of(config, module, dataset)
    assert float(jax.jit(measure)(variables)["error"]) == 0


@pytest.mark.full
def test_the_two_rules_for_running_statistics_differ():
    module, train = models.model("conv", 10, "batch"), split(64, 1)
    variables = module.init(jax.random.key(0), train.images)
    plain = measures.measure_on(module, split(20))
    anew = measures.recalibrated(plain, module, train, batch_size=16, examples=48)
    assert float(jax.jit(anew)(variables)["loss"]) != float(jax.jit(plain)(variables)["loss"])


def test_the_rule_is_named_only_where_there_are_running_statistics():
    images = split(1).images
    for config, expected in (
        (measures.PathSettings(model="mlp"), None),
        (measures.PathSettings(model="conv"), None),
        (measures.PathSettings(model="conv", norm="batch"), "recalibrate"),
        (
            measures.PathSettings(model="conv", norm="batch", statistics="interpolate"),
            "interpolate",
        ),
    ):
        assert (
            measures.rule(config, models.model(config.model, 10, config.norm), images) == expected
        )


def test_nothing_lies_between_networks_that_diverged():
    families = {"w": np.zeros((2, 3, 4)), "b": np.zeros((2, 3))}
    families["w"][1, 2, 0] = np.nan
    families["b"][0, 1] = np.inf
    with pytest.raises(
        RecipeError, match=r"^children: .* in 2 of 6 networks \(places 1, 5\): .* lower --l"
    ):
        measures.between_siblings(lambda variables: {}, families, 3)


def test_heights_are_those_of_the_library():
    values = np.array([[0.25, 0.1, 1.0], [0.5, 3.0, 1.0]])
    assert measures.above_ends(values) == pytest.approx([0.375, 2.25])
    assert measures.above_chord(values) == pytest.approx([0, 2.25])
    loss = lambda w: jnp.interp(w, jnp.array([0, 0.5, 1]), jnp.asarray(values[1]))
    assert float(jp.barrier(loss, 0.0, 1.0, 3)) == pytest.approx(2.25)
    assert (measures.above_chord(np.full((2, 11), 0.1)) == 0).all()


def test_over_pairs():
    matrix = np.array([[0.0, 1.0, 2.0], [1.0, 0.0, 3.0], [2.0, 3.0, 0.0]])
    said = measures.over_pairs(matrix)
    assert (said["mean"], said["highest"], said["matrix"]) == (2.0, 3.0, matrix.tolist())
    assert said["error"] == pytest.approx(2 / 3**0.5)  # the jackknife's
    assert measures.over_pairs(matrix[:2, :2])["error"] is None
    at_chance = measures.over_pairs(matrix, at_chance=True)
    assert at_chance == dict.fromkeys(("mean", "error", "highest")) | {"matrix": matrix.tolist()}
    assert report.plus_minus(at_chance, 2) == "n/a"
    siblings = measures.over_siblings([[1.0, 2.0, 3.0]], 3)
    assert siblings["mean"] == 2.0 and siblings["error"] == pytest.approx(said["error"])


def test_over_siblings():
    said = measures.over_siblings([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]], 3)
    assert (said["mean"], said["per_seed"]) == (3.0, [2.0, 4.0])
    assert said["error"] == pytest.approx(1.0)  # std sqrt(2) over two seeds
    assert measures.over_siblings([[1.0]], 2)["error"] is None
    assert measures.over_siblings([[0.0, 0.0, 0.0]] * 2, 3, at_chance=True)["mean"] is None
