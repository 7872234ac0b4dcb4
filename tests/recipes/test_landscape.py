"""Losses around networks: summary, arrays, and which examples they are of."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from recipes import landscape
from recipes.common import arms, checkpoints, data, lanes, models
from recipes.common.folder import RecipeError
from recipes.reports.landscape import ARRAYS


@pytest.mark.full
def test_the_summary(finished):
    summary = finished.summary
    assert summary["seeds"] == 3 and summary["steps"] == 6
    for arm, weights in (("dense", 50_826), ("sparse", 50_826 - round(0.95 * 50_432))):
        own = summary["arms"][arm]
        assert own["weights"] == weights
        values = np.array(own["eigenvalues"])
        assert values.shape == (3, 3) and (np.diff(values, axis=1) <= 0).all()
        assert own["largest_eigenvalue"]["per_seed"] == values[:, 0].tolist()
        assert len(own["loss_barrier_before_matching"]["per_seed"]) == 3  # pairs
        per_weight = own["trace"]["mean"] / weights
        assert own["trace_per_weight"]["mean"] == pytest.approx(per_weight)
    before, after = (
        summary["arms"]["sparse"][f"mask_overlap_{w}_matching"] for w in ("before", "after")
    )
    assert 0 < before["mean"] < after["mean"] < 1
    assert "mask_overlap_before_matching" not in summary["arms"]["dense"]
    assert summary["hessian_vector_product"]["ratio"] > 0


@pytest.mark.full
def test_the_arrays_are_what_the_plots_show(finished):
    arrays = np.load(finished.out / ARRAYS)
    for arm in ("dense", "sparse"):
        for name in ("seeds", "around", "alignment"):
            assert arrays[f"{arm}/{name}/losses"].shape == (5, 5)
        marks = arrays[f"{arm}/seeds/marks"]
        np.testing.assert_allclose(marks[0], (0, 0), atol=1e-5)
        assert marks[1, 0] > 0 and abs(marks[1, 1]) < 1e-4 and marks[2, 1] > 0
        assert arrays[f"{arm}/spectrum/nodes"].shape == (3, 2, 6)
        around = arrays[f"{arm}/around/losses"]
        assert around[2, 2] == around.min() or around[2, 2] < around.mean()


@pytest.mark.full
def test_losses_are_those_of_training_data(finished):
    """The middle of the plane around the first seed is its loss on the first 100 examples."""
    images, labels = (x[:100] for x in data.load("digits", train_examples=256).train)
    params = jax.tree.map(lambda w: w[0], finished.model()[0])
    logits = models.model("mlp", 10).apply({"params": params}, images)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    around = np.load(finished.out / ARRAYS)["sparse/around/losses"]
    assert around[2, 2] == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.full
def test_the_sparse_twins_train_under_the_masks_of_a_folder(tmp_path):
    digits = data.load("digits", train_examples=64)
    module, keys = models.model("mlp", 10, width=0.1), lanes.seed_keys(0, 3)
    params = models.init(module, keys, digits.train.images[:1])["params"]
    by_seed = jax.vmap(lambda key: jp.select(jp.random(key)(jp.kernels(first)), jp.erk, 0.8))
    first = lanes.lane_of(params, 0)
    masks = by_seed(keys)
    checkpoints.save_model(tmp_path / "model", params, {}, masks)

    config = landscape.Config(
        width=0.1, masks=tmp_path / "model", examples=64, lanczos_steps=6, eigenvalues=3
    )
    arm = landscape.arms(config, digits, 10)["sparse"]
    state = arms.begin(arm, keys, digits.train.images)
    chex.assert_trees_all_equal(jp.get_masks(state.opt_state), masks)
    chex.assert_trees_all_equal(state.params, jp.apply_masks(params, masks))
    with pytest.raises(RecipeError, match=r"the masks in .* are of another network"):
        landscape.arms(replace(config, width=0.2), digits, 10)


@pytest.mark.full
def test_the_losses_of_a_convolutional_network_have_second_derivatives():
    module = models.model("conv", 10)
    images = np.asarray(jax.random.normal(jax.random.key(0), (6, 8, 8, 1)))
    split = data.Split(images, np.arange(6, dtype=np.int32))
    losses = landscape.losses_on(module, split, 5)
    params = module.init(jax.random.key(1), images[:1])["params"]
    product = jp.analysis.hvp(losses.loss, params, params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(product))
    assert losses.both(params)["loss"] == pytest.approx(float(losses.loss(params)), rel=1e-6)


def test_the_barrier_is_above_the_chord():
    alphas = np.linspace(0, 1, 3)
    assert landscape.above_chord(alphas, np.array([1.0, 3.0, 2.0])) == 1.5
    assert landscape.above_chord(alphas, np.array([1.0, 1.0, 2.0])) == 0.0
