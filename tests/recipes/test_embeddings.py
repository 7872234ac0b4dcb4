"""Embeddings: average precision, triplets and grids by hand; what a round of pruning takes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recipes import embeddings
from recipes.common.data import Split
from recipes.embeddings import Lane
from tests.recipes import running


class Given(nn.Module):
    """An embedder whose images are the embeddings."""

    @nn.compact
    def __call__(self, images, train=False, keep=1.0, bits=32.0):
        z = images.reshape(len(images), -1)
        z = z * jnp.broadcast_to(keep, z.shape)
        return z, embeddings.stored(z, bits), z


def lane(keep, bits):
    return Lane(jax.random.split(jax.random.key(0), len(bits)), jnp.array(keep), jnp.array(bits))


def test_average_precision_by_hand():
    """Four points on a circle at 0, 10, 21 and 90 degrees, of the classes a, b, a and b.

    From the nearest on they see b a b, a a b, b a b and a b a. The second finds its class third,
    the others second.
    """
    angles = jnp.radians(jnp.array([0.0, 10, 21, 90]))
    points = jnp.stack([jnp.cos(angles), jnp.sin(angles)], -1).reshape(4, 1, 1, 2)
    find = embeddings.retrieval(Given(), Split(points, jnp.array([0, 1, 0, 1])))
    precision, rank_1 = find({}, lane([[1.0, 1.0]], [32.0]))
    np.testing.assert_allclose(precision, [(1 / 2 + 1 / 3 + 1 / 2 + 1 / 2) / 4], rtol=1e-6)
    np.testing.assert_array_equal(rank_1, [0])


def test_the_farthest_of_the_class_and_the_nearest_of_another():
    """Directions 0, 60 and 90 degrees, chords 1, sqrt 2 and 2 sin 15 degrees; a margin of 1/2."""
    angles = jnp.radians(jnp.array([0.0, 60, 90]))
    q = 3 * jnp.stack([jnp.cos(angles), jnp.sin(angles)], -1)
    short, long = 2 * np.sin(np.radians(15)), np.sqrt(2)
    by_hand = [1 - long + 0.5, 1 - short + 0.5, 0 - short + 0.5]
    loss = embeddings.batch_hard(q, jnp.array([0, 0, 1]), 0.5)
    assert float(loss) == pytest.approx(np.maximum(by_hand, 0).mean(), abs=1e-4)
    slope = jax.grad(embeddings.batch_hard)(jnp.zeros((3, 2)), jnp.array([0, 0, 1]), 0.5)
    assert np.isfinite(slope).all()
    assert embeddings.batch_hard(q, jnp.zeros(3, int), 0.5) == 0  # no other class


def test_one_grid_for_all_dimensions_and_one_bit_is_the_sign():
    z = jnp.array([[-1.0, 0.3, 0.0, 0.7]])
    np.testing.assert_array_equal(embeddings.stored(z, 32.0), z)
    np.testing.assert_allclose(embeddings.stored(z, 4.0) * 7, [[-7, 2, 0, 5]], rtol=1e-6)
    np.testing.assert_allclose(embeddings.stored(z, 2.0), [[-1, 0, 0, 1]], rtol=1e-6)
    outlier = jnp.array([[-4.0, 1, 1, 1, 1]])  # the mean size is 1.6
    np.testing.assert_allclose(embeddings.stored(outlier, 2.0), [[-3.2, 0, 0, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(embeddings.stored(z, 1.0) * 3, [[-2, 2, 0, 2]], rtol=1e-6)
    slope = jax.grad(lambda z: embeddings.stored(z, 2.0).sum())(z)
    np.testing.assert_array_equal(slope, jnp.ones((1, 4)))


def test_held_out_classes_must_leave_some(tmp_path, capsys):
    argv = ["--held-out", "9", "--out", str(tmp_path / "run")]
    assert running.exit_code(embeddings, *argv) == 2
    assert "--held-out leaves at least 2 of 10 classes" in capsys.readouterr().err
    argv = ["--dims", "4", "8", "--out", str(tmp_path / "run")]
    assert running.exit_code(embeddings, *argv) == 2
    assert "--dims begins with the most dimensions" in capsys.readouterr().err


@pytest.mark.full
def test_all_dimensions_in_float_are_no_compression_and_rounds_take_the_largest(run):
    """Slicing and low rank with all dimensions; what pruning keeps is a part of what it had."""
    records = running.records(run("embeddings").out)
    assert [(record["method"], record["dims"]) for record in records] == [
        ("slicing", [8, 4, 2]),
        ("low_rank", [8, 4, 2]),
        ("pruned", [4]),
        ("pruned", [2]),
    ]
    arms = run("embeddings").summary["arms"]
    assert arms["pruned 32 bits"][0] == arms["slicing 32 bits"][0]
    assert [cell["bits"] for cell in arms["slicing 1 bit"]] == [8, 4, 2]
    for cells in arms.values():
        assert all(
            0 < cell["map"]["mean"] <= 1 and 0 <= cell["rank_1"]["mean"] <= 1 for cell in cells
        )
