"""A small dense network has as many params as a pruned one has left; text has a label a token."""

import jax
import numpy as np
import pytest

from recipes import small_dense
from recipes.common import data, dead, measures, models
from recipes.common.data import Split
from recipes.small_dense import DECODER, Config, as_small, bracket, family, narrowed, sizes


def test_the_bracket_lies_around_a_count():
    low, high = bracket(lambda width: round(width * 1000), 250, 1.0)
    assert round(low * 1000) <= 250 < round(high * 1000) and high / low < 1.005
    assert bracket(lambda width: 10, 5, 1.0) == (0.001, 0.001)


def test_params_count_with_those_that_are_never_pruned():
    config, digits = Config(width=0.25), data.load("digits", train_examples=64)
    shape = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
    of_width = family(config, digits)
    params, prunable = sizes(of_width(0.25), shape)
    weights = 64 * 64 + 64 * 32 + 32 * 10
    assert (params, prunable) == (weights + 64 + 32 + 10, weights)
    for sparsity in (0.5, 0.9):
        left = params - round(sparsity * prunable)
        assert sizes(as_small(config, of_width, shape, sparsity), shape)[0] == pytest.approx(
            left, rel=0.03
        )


def test_a_decoder_becomes_narrower_and_keeps_its_heads():
    half = narrowed(DECODER, 0.5)
    assert (half.layers, half.heads, half.queries) == (2, 2, 2)
    assert (half.width, half.dims, half.hidden) == (40, 10, 96)
    assert narrowed(DECODER, 0.01).dims == 2


def test_every_token_of_a_text_counts():
    """Of 2 windows of 3 tokens, in batches of 2 and padded to 2, a constant answer has 4 right."""
    labels = np.array([[1, 1, 0], [1, 2, 1]], np.int32)
    split = Split(np.zeros((2, 3), np.uint8), labels)

    class Constant:
        def apply(self, variables, tokens):
            return jax.nn.one_hot(variables["answer"] + 0 * tokens.astype(int), 3)

    stack = {"answer": np.array([1, 0, 2])}
    for batch_size in (1, 2, 250):
        accuracy = measures.accuracy(Constant(), split, batch_size)(stack)
        np.testing.assert_allclose(accuracy, [4 / 6, 1 / 6, 1 / 6])
    longer = Split(np.zeros((3, 3), np.uint8), np.concatenate([labels, labels[:1]]))
    padded = measures.accuracy(Constant(), longer, 2)(stack)
    np.testing.assert_allclose(padded, [6 / 9, 2 / 9, 1 / 9])
    assert dead.chance(labels) == pytest.approx(4 / 6 + np.sqrt(4 / 6 * 2 / 6 / 6))


@pytest.mark.full
def test_twins_have_as_many_params(run):
    done = run("small_dense")
    arms = done.summary["arms"]
    sparse, small = arms["sparse 50"], arms["small 50"]
    params, _, masks = done.model("sparse-50")
    non_zeros = sum(int((np.asarray(x)[0] != 0).sum()) for x in jax.tree.leaves(params))
    kept = sum(int(mask[0].sum()) for mask in jax.tree.leaves(masks))
    biases = 64 + 32 + 10
    assert sparse["non_zeros"] == kept + biases >= non_zeros
    narrow, _, _ = done.model("small-50")
    assert small["non_zeros"] == sum(x[0].size for x in jax.tree.leaves(narrow))
    accuracy = [arms[arm]["test_accuracy"]["per_seed"] for arm in ("sparse 50", "small 50")]
    gap = np.subtract(*accuracy)
    assert done.summary["sparse_minus_small"]["0.5"]["per_seed"] == pytest.approx(gap.tolist())


@pytest.mark.full
def test_a_text_trains_a_decoder(tmp_path):
    """Of every token of a window it learns, and bits are told beside the accuracy."""
    short = (
        "--seeds 1 --steps 4 --log-every 2 --evaluations 1 --train-examples 200 --sparsity 0.5"
        " --dataset names --context 8 --batch-size 8"
    )
    out = tmp_path / "run"
    small_dense.main([*short.split(), "--out", str(out)])
    assert "| bits, sparse |" in (out / "report.md").read_text()
    dataset = small_dense.dataset_of(Config(dataset="names", context=8, out=tmp_path / "other"))
    assert dataset.train.labels.shape == dataset.train.images.shape
    np.testing.assert_array_equal(dataset.test.images[0, 1:], dataset.test.labels[0, :-1])
    assert isinstance(family(Config(dataset="names"), dataset)(1.0), models.Decoder)
