"""Numbers under shift: those of corrupted images, of an attack, and of how sure networks are."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recipes.common import confidence, data, measures, shift
from recipes.common.corruptions import CORRUPTIONS, corrupted
from tests.recipes import running


class Linear(nn.Module):
    """One layer."""

    @nn.compact
    def __call__(self, images):
        return nn.Dense(10)(images.reshape(len(images), -1))


@pytest.fixture(scope="module")
def digits():
    whole = data.load("digits")
    return whole._replace(test=data.Split(*(x[:60] for x in whole.test)))


@pytest.fixture(scope="module")
def measured(digits):
    init = lambda key: Linear().init(key, digits.test.images[:1])
    variables = jax.vmap(init)(jax.random.split(jax.random.key(0), 2))
    return variables, shift.measure_of(Linear(), digits, "digits")(variables)


def test_bytes_of_digits(digits):
    """A digit has values 0 to 16; 255 times a sixteenth, rounded."""
    raw = np.rint(digits.test.images * digits.std + digits.mean)
    assert (raw.min(), raw.max()) == (0, 16)
    found = shift.in_bytes(digits, 16)
    assert set(found[raw == 0]) == {0} and set(found[raw == 16]) == {255}
    assert set(found[raw == 1]) == {16} and set(found[raw == 8]) == {128}


def test_corrupted_images_are_those_that_are_tested(digits, measured):
    variables, numbers = measured
    clean = measures.accuracy(Linear(), digits.test)(variables)
    np.testing.assert_allclose(numbers["clean"], clean)
    images = corrupted("blur", jax.random.key(0), shift.in_bytes(digits, 16), 3)
    seen = ((images * (16 / 255) - digits.mean) / digits.std).astype(np.float32)
    of_blur = measures.accuracy(Linear(), data.Split(seen, digits.test.labels))(variables)
    np.testing.assert_allclose(numbers["blur"][2], of_blur)
    logits = np.asarray(Linear().apply(jax.tree.map(lambda x: x[1], variables), digits.test.images))
    error = confidence.calibration_error(logits, digits.test.labels)
    assert numbers["calibration_error"][1] == pytest.approx(error, abs=1e-6)
    for kind in (*CORRUPTIONS, "attack"):
        assert numbers[kind].shape == (5, 2)


def test_an_attack_moves_each_pixel_uphill(digits, measured):
    """Of one layer the gradient in the images is (probabilities - label) times the kernel."""
    variables, numbers = measured
    one = jax.tree.map(lambda x: x[0], variables)
    kernel = one["params"]["Dense_0"]["kernel"]
    logits = Linear().apply(one, digits.test.images)
    slope = (jax.nn.softmax(logits) - jax.nn.one_hot(digits.test.labels, 10)) @ kernel.T
    raw = digits.test.images * digits.std + digits.mean
    uphill = np.sign(np.asarray(slope)).reshape(raw.shape)
    wanted = []
    for n in shift.ATTACKS:
        moved = np.clip(raw + 16 * (n / 255) * uphill, 0, 16)
        seen = jnp.asarray((moved - digits.mean) / digits.std, jnp.float32)
        wanted.append(
            np.mean(np.asarray(Linear().apply(one, seen)).argmax(-1) == digits.test.labels)
        )
    np.testing.assert_allclose(numbers["attack"][:, 0], wanted, atol=0.02)
    assert numbers["clean"][0] > wanted[0] > wanted[-1]


def test_the_table_has_means_over_strengths(measured):
    arms = {"one": measured[1], "two": shift.lists(measured[1])}
    ((columns, rows),) = shift.tables(arms).values()
    cells = {name: own for name, *own in rows}
    assert columns == ["one", "two"] and all(a == b for a, b in cells.values())
    names = ["clean", *CORRUPTIONS, "all corruptions", "attack"]
    assert list(cells) == [*names, "calibration error", "calibration error shifted"]
    assert cells["noise"][0].startswith(f"{100 * measured[1]['noise'].mean():.2f} ± ")
    told = shift.summary(arms)["shift"]["one"]
    of_seeds = [told[name]["per_seed"] for name in CORRUPTIONS]
    assert told["all corruptions"]["per_seed"] == pytest.approx(np.mean(of_seeds, 0).tolist())
    assert shift.tables({}) == shift.summary({}) == shift.pictures({}) == {}


@pytest.mark.full
@pytest.mark.parametrize(
    ("recipe", "how", "arms"),
    [
        ("gmp", "", {"dense", "sparse"}),
        ("soup", "", {"soup", "greedy soup", "best child", "mean child", "IMP", "IMP 3x"}),
        ("tickets", " --method ltr --phases 1", {"dense", "ltr"}),
    ],
)
def test_studies_test_under_shift(recipe, how, arms, tmp_path):
    done = running.varied(recipe, f"--shift{how}", tmp_path / "run")
    assert set(done.summary["shift"]) == arms
    told = done.summary["phases"][-1] if recipe == "soup" else done.summary
    for arm, numbers in done.summary["shift"].items():
        if recipe == "soup":
            own = told["test_accuracy"][arm]
        elif recipe == "gmp":
            own = told["arms"][arm]["test_accuracy"]
        else:
            own = (told["dense"] if arm == "dense" else told["arms"][arm][-1])["test_accuracy"]
        assert numbers["clean"]["per_seed"] == pytest.approx(own["per_seed"], abs=1e-6)
    assert (done.out / shift.PICTURE).exists()
    assert "| all corruptions |" in (done.out / "report.md").read_text()
