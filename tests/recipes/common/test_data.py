"""Data sets: shapes, normalization, and one clear line for what is not there."""

import hashlib
import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recipes.common import data
from recipes.common.data import balanced_rows
from recipes.common.folder import RecipeError
from tests.quick import quick
from tests.recipes.common import tfds_folder

FOLDER = os.environ.get("JAXPRUNE_DATA_DIR")
on_disk = pytest.mark.skipif(not FOLDER, reason="JAXPRUNE_DATA_DIR names no TFDS folder")
SHAPES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


def tiny(name, seed=0):
    """Split -> (images, labels): 1,001 to train on, which are read in two portions, and 7."""
    rng = np.random.default_rng(seed)
    draw = lambda n: (rng.integers(0, 256, (n, *SHAPES[name]), np.uint8), rng.integers(0, 9, n))
    splits = {"train": draw(1001), "test": draw(7)}
    splits["train"][1][5] = 9
    return splits


def test_digits():
    digits = data.load("digits")
    assert digits.classes == 10
    assert digits.train.images.shape == (1437, 8, 8, 1)
    assert digits.test.images.shape == (360, 8, 8, 1)
    for split in (digits.train, digits.test):
        assert split.images.dtype == np.float32
        assert split.labels.dtype == np.int32
    assert abs(digits.train.images.mean()) < 1e-6
    assert abs(digits.train.images.std() - 1) < 1e-6
    assert np.bincount(digits.test.labels).tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]


GOLDEN = {  # sha256 of pixels (0 to 16, uint8) and labels (int32), in order
    "train": "41eb3b4b9ee3310cc4eda4a267e7ef3f08ecc2eae1ad984139167843eb920e7d",
    "test": "b73ad886c973a728a3983062b04e72cc2f7effc9643c50702683ffd0c5faf323",
}


def test_digits_are_the_same_everywhere():
    """The same split, in the same order, on every machine: all results of digits rest on it."""
    digits = data.load("digits")
    mean, std = 4.8861343, 6.0179067  # of train's pixels
    for name, golden in GOLDEN.items():
        images, labels = getattr(digits, name)
        pixels = np.rint(images * std + mean)
        np.testing.assert_allclose(images, (pixels - mean) / std, atol=1e-5)
        content = pixels.astype(np.uint8).tobytes() + labels.tobytes()
        assert hashlib.sha256(content).hexdigest() == golden


def test_train_examples_keeps_the_first():
    few, all_ = data.load("digits", train_examples=100), data.load("digits")
    np.testing.assert_array_equal(few.train.labels, all_.train.labels[:100])
    assert abs(few.train.images.mean()) < 1e-6
    assert len(few.test.labels) == 360


@pytest.mark.parametrize("examples", [0, -1, 1438])
def test_train_examples_out_of_range(examples):
    with pytest.raises(RecipeError, match=r"--train-examples must be in \[1, 1437\]"):
        data.load("digits", train_examples=examples)


def test_hold_out_parts_the_examples():
    train = data.load("digits", train_examples=100).train
    rest, held = data.hold_out(train, 30)
    assert (len(rest.labels), len(held.labels)) == (70, 30)
    assert rest.images.shape == (70, 8, 8, 1) and held.images.dtype == np.float32
    rows = lambda split: {(x.tobytes(), int(y)) for x, y in zip(*split, strict=True)}
    assert rows(rest) | rows(held) == rows(train)
    assert not rows(rest) & rows(held)
    again = data.hold_out(train, 30)[1]
    np.testing.assert_array_equal(again.images, held.images)
    assert (data.hold_out(train, 30, seed=1)[1].images != held.images).any()


@pytest.mark.parametrize("examples", [0, 100, -1])
def test_hold_out_leaves_examples_on_both_sides(examples):
    train = data.load("digits", train_examples=100).train
    with pytest.raises(RecipeError, match=f"can't hold out {examples} of 100 examples"):
        data.hold_out(train, examples)


def test_unknown_dataset():
    with pytest.raises(RecipeError, match=r"unknown dataset 'svhn'; choose one of digits, mnist"):
        data.load("svhn")


def test_data_dir_is_needed(monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    with pytest.raises(RecipeError, match="mnist is read from disk: say where with --data-dir"):
        data.load("mnist")


def test_data_dir_does_not_exist(monkeypatch):
    with pytest.raises(RecipeError, match="'/nowhere' is not a folder"):
        data.load("mnist", "/nowhere")
    monkeypatch.setenv("TFDS_DATA_DIR", "/elsewhere")
    with pytest.raises(RecipeError, match="'/elsewhere' is not a folder"):
        data.load("mnist")


def test_data_dir_without_the_dataset(tmp_path):
    (tmp_path / "cifar10").mkdir()
    for i in range(40):
        (tmp_path / f"z{i:02}").mkdir()
    shown = r"it holds cifar10, z00, z01, z02, z03 and 36 folders more$"
    with pytest.raises(RecipeError, match=f"has no 'mnist'; {shown}"):
        data.load("mnist", tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_data_dir_with_a_broken_dataset(tmp_path):
    (tmp_path / "mnist" / "3.0.1").mkdir(parents=True)
    with pytest.raises(RecipeError, match="cannot read 'mnist'") as caught:
        data.load("mnist", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", quick(SHAPES))
@pytest.mark.parametrize("where", quick(["--data-dir", "TFDS_DATA_DIR"]))
def test_a_folder_of_tfds_is_read_as_it_was_written(tmp_path, monkeypatch, name, where):
    written = tiny(name)
    tfds_folder.write(tmp_path, name, written)
    if where == "--data-dir":
        monkeypatch.setenv("TFDS_DATA_DIR", "/elsewhere")
        dataset = data.load(name, tmp_path)
    else:
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
        dataset = data.load(name)
    pixels = written["train"][0].astype(np.float64)
    mean, std = pixels.mean((0, 1, 2)), pixels.std((0, 1, 2))  # of each channel
    for split, (images, labels) in written.items():
        read = getattr(dataset, split)
        assert (read.images.dtype, read.labels.dtype) == (np.float32, np.int32)
        np.testing.assert_array_equal(read.labels, labels)  # in order
        np.testing.assert_allclose(read.images, (images - mean) / std, atol=1e-5)
    assert dataset.classes == 10


def test_train_examples_of_a_folder_are_its_first(tmp_path):
    written = tiny("mnist")
    tfds_folder.write(tmp_path, "mnist", written)
    few = data.load("mnist", tmp_path, train_examples=10)
    assert few.train.images.shape == (10, 28, 28, 1) and len(few.test.labels) == 7
    np.testing.assert_array_equal(few.train.labels, written["train"][1][:10])
    assert abs(few.train.images.mean()) < 1e-5


def test_a_folder_whose_records_are_cut_off(tmp_path):
    tfds_folder.write(tmp_path, "mnist", tiny("mnist"))
    (shard,) = (tmp_path / "mnist").rglob("*-train.*")
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(RecipeError, match="cannot read 'mnist'") as caught:
        data.load("mnist", tmp_path)
    assert "\n" not in str(caught.value)


@on_disk
@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "train", "test", "shape"),
    [("mnist", 60000, 10000, (28, 28, 1)), ("cifar10", 50000, 10000, (32, 32, 3))],
)
def test_tfds(name, train, test, shape):
    dataset = data.load(name, FOLDER)
    assert dataset.train.images.shape == (train, *shape)
    assert dataset.test.images.shape == (test, *shape)
    assert dataset.train.images.dtype == np.float32
    assert dataset.classes == 10
    np.testing.assert_allclose(dataset.train.images.mean((0, 1, 2), np.float64), 0, atol=1e-3)
    np.testing.assert_allclose(dataset.train.images.std((0, 1, 2), np.float64), 1, atol=1e-3)


LABELS = np.random.default_rng(0).integers(0, 4, 200)


def test_an_epoch_leaves_out_the_last_examples_of_its_order():
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    two_epochs = lambda batch, steps: np.stack(
        list(itertools.islice(data.order(keys, 10, batch), steps))
    ).swapaxes(0, 1)
    whole = two_epochs(5, 4).reshape(2, 2, 10)  # (keys, epochs, examples): none is left out
    np.testing.assert_array_equal(np.sort(whole), np.broadcast_to(np.arange(10), whole.shape))
    np.testing.assert_array_equal(two_epochs(4, 4).reshape(2, 2, 8), whole[..., :8])
    assert (whole[0] != whole[1]).any() and (whole[:, 0] != whole[:, 1]).any()


def test_as_many_of_each_and_none_twice():
    rows = np.asarray(balanced_rows(jax.random.key(0), LABELS, 4, 9))
    assert np.bincount(LABELS[rows]).tolist() == [9] * 4
    assert len(set(rows.tolist())) == 36


def test_it_is_its_key_also_under_vmap():
    keys = jax.random.split(jax.random.key(0), 3)
    draw = lambda key: balanced_rows(key, LABELS, 4, 9)
    lanes = jax.jit(jax.vmap(draw))(keys)
    for lane, key in zip(lanes, keys, strict=True):
        np.testing.assert_array_equal(lane, draw(key))
    assert (lanes[0] != lanes[1]).any()


def test_every_example_of_a_class_is_as_likely():
    keys = jax.random.split(jax.random.key(1), 2000)
    rows = np.asarray(jax.vmap(lambda key: balanced_rows(key, LABELS, 4, 9))(keys))
    drawn = np.bincount(rows.ravel(), minlength=200) / 2000
    # the standard error is below 0.011
    np.testing.assert_allclose(drawn, 9 / np.bincount(LABELS)[LABELS], atol=0.05)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[LABELS != 2], "class 2 has none of"),
        (np.array([0, 1, 2, 3, 3, 2, 1]), "class 0 has 1 of 7"),
    ],
)
def test_a_class_with_too_few_examples(labels, message):
    with pytest.raises(RecipeError, match=message) as error:
        balanced_rows(jax.random.key(0), labels, 4, 2)
    assert "a balanced batch needs 2 examples of each of 4 classes" in str(error.value)
    assert "Take fewer of each" in str(error.value)
