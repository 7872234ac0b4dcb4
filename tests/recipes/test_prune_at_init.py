"""Pruning at initialization: masks, controls, and collapse."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from recipes import prune_at_init
from recipes.common import data, lanes, models
from recipes.reports import prune_at_init as report
from tests.recipes import running

WEIGHTS = 64 * 256 + 256 * 128 + 128 * 10


@pytest.fixture(scope="module")
def controlled(tmp_path_factory):
    """A short run of two methods at two sparsities, with controls."""
    flags = "--rounds 30 --sparsity 0.9 0.9999 --method snip synflow --controls"
    return running.varied("prune_at_init", flags, tmp_path_factory.mktemp("runs") / "controlled")


def masks_of(run, arm):
    return run.model(arm.replace(" ", "-"))[2]


@pytest.mark.full
def test_every_method_keeps_as_many(finished):
    numbers = finished.summary["arms"]
    assert list(numbers) == ["dense", *prune_at_init.METHODS]
    kept = WEIGHTS - round(0.9 * WEIGHTS)
    for method in prune_at_init.METHODS:
        assert numbers[method]["kept_weights"] == pytest.approx(
            [kept] * 2, abs=2 if method.startswith("random") else 0
        )
        assert len(numbers[method]["test_accuracy"]["per_seed"]) == 2
        assert 0 <= max(numbers[method]["on_paths"]) <= kept + 2


@pytest.mark.full
def test_the_methods_differ_and_so_do_the_seeds(finished):
    kernels = [masks_of(finished, method)["Dense_1"]["kernel"] for method in prune_at_init.METHODS]
    for i, a in enumerate(kernels):
        assert (a[0] != a[1]).any()
        for b in kernels[:i]:
            assert (a != b).any()


@pytest.mark.full
def test_masks_stay_as_they_were_made(finished):
    for record in finished.records:
        for method in prune_at_init.METHODS:
            assert record[method]["sparsity"] == pytest.approx([0.9, 0.9], abs=1e-4)
            assert record[method]["overlap_first"] == [1, 1]
    params, _, masks = finished.model("force")
    assert not params["Dense_0"]["kernel"][~masks["Dense_0"]["kernel"]].any()


@pytest.mark.full
def test_snip_s_masks_are_those_of_its_score(finished):
    digits = data.load("digits", train_examples=256).train
    module, key = models.model("mlp", 10), lanes.seed_keys(0, 1)[0]
    params = module.init(jax.random.fold_in(key, 0), digits.images[:1])["params"]
    rows = data.balanced_rows(jax.random.fold_in(key, 2), digits.labels, 10, 5)
    batch = digits.images[rows], digits.labels[rows]
    loss = lambda params: models.classification(module)(params, {}, *batch)[0]
    masks = jp.select(jp.at_init.snip(loss, params), jp.global_threshold, 0.9)
    found = masks_of(finished, "snip")
    for layer in ("Dense_0", "Dense_1", "Dense_2"):
        assert np.mean(found[layer]["kernel"][0] == masks[layer]["kernel"]) > 0.999


# --- what methods are given ---------------------------------------------------------------------


@pytest.mark.full
def test_grasp_takes_its_loss_at_the_temperature_of_its_authors():
    module, key = models.MLP((8,), 10), jax.random.key(0)
    images, labels = (part[:32] for part in data.load("digits", train_examples=64).train)
    params = module.init(key, images)["params"]

    def loss(params, temperature):
        logits = jax.nn.log_softmax(module.apply({"params": params}, images) / temperature)
        return -logits[jnp.arange(32), labels].mean()

    split = data.Split(jnp.asarray(images), jnp.asarray(labels))
    masks = prune_at_init.masks_of("grasp", module, lambda key: jnp.arange(32))
    found = masks(key, params, 0.5, split)["Dense_0"]["kernel"]

    def alike(temperature):
        scores = jp.at_init.grasp(partial(loss, temperature=temperature), params)
        expected = jp.select(scores, jp.global_threshold, 0.5)["Dense_0"]["kernel"]
        return float((found == expected).mean())

    assert alike(200) > 0.995 > alike(1)


@pytest.mark.full
@pytest.mark.parametrize("norm", models.NORMS)
def test_flow_is_conserved_through_convolutions_whatever_the_norm(norm):
    module = models.model("conv", 10, norm, width=0.25)
    params = module.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))["params"]
    shares = jax.jit(lambda p: jp.at_init.flow_shares(prune_at_init.flow(module, (8, 8, 1)), p))(
        params
    )
    sums = [float(share.sum()) for share in jax.tree.leaves(shares)]
    np.testing.assert_allclose(sums, 1, rtol=1e-4)


@pytest.mark.full
def test_weights_on_paths_by_hand():
    # two inputs, three hidden units, two outputs
    module = models.MLP((3,), 2)
    masks = {
        "Dense_0": {"kernel": jnp.array([[1, 0, 0], [0, 1, 0]], bool), "bias": None},
        "Dense_1": {"kernel": jnp.array([[1, 1], [0, 0], [0, 1]], bool), "bias": None},
    }
    params = module.init(jax.random.key(0), jnp.ones((1, 2)))["params"]
    params = jax.tree.map(lambda x: x + 1.0, params)  # a bias that reaches the output is no path
    nothing = jax.tree.map(lambda m: m & False, masks)
    stack = jax.tree.map(lambda *xs: jnp.stack(xs), masks, nothing)
    both = jax.tree.map(lambda x: jnp.stack([x, x]), params)
    # of the first layer the weight of unit 0; of the last the two that leave it
    found = report.weights_on_paths(prune_at_init.flow(module, (2,)), both, stack)
    assert found.tolist() == [3, 0]


# --- several sparsities, and controls ------------------------------------------------------------


@pytest.mark.full
def test_arms_are_named_by_sparsity_and_control(controlled):
    names = [
        f"{method} {sparsity}{control}"
        for method in ("snip", "synflow")
        for sparsity in ("90%", "99.99%")
        for control in ("", " shuffled", " redrawn")
    ]
    assert list(controlled.summary["arms"]) == ["dense", *names]
    assert (controlled.out / "plots" / "controls.png").read_bytes().startswith(b"\x89PNG")
    report = (controlled.out / "report.md").read_text()
    assert "**snip 99.99%**" in report and "**snip 90%**" not in report


@pytest.mark.full
def test_all_of_them_share_one_program(controlled):
    assert controlled.programs[-1] == 2  # and the dense arm has another


@pytest.mark.full
def test_controls_keep_what_they_say(controlled):
    count = lambda masks: [np.sum(masks[f"Dense_{i}"]["kernel"], (1, 2)).tolist() for i in range(3)]
    for method in ("snip", "synflow"):
        own, shuffled, redrawn = (
            masks_of(controlled, f"{method} 90%{control}")
            for control in ("", " shuffled", " redrawn")
        )
        assert count(own) == count(shuffled)
        jax.tree.map(np.testing.assert_array_equal, own, redrawn)
        assert (own["Dense_0"]["kernel"] != shuffled["Dense_0"]["kernel"]).any()


@pytest.mark.full
def test_collapse_is_told(controlled):
    snip, synflow = (
        controlled.summary["arms"][f"{method} 99.99%"] for method in ("snip", "synflow")
    )
    assert snip["kept_weights"] == synflow["kept_weights"] == [5, 5]
    assert synflow["collapsed"] == [False, False] and synflow["test_accuracy"]["empty_layers"] == {}
    assert snip["collapsed"] == [True, True]
    assert snip["on_paths"] == [0, 0] and min(synflow["on_paths"]) > 0
    assert all(0 < seeds <= 2 for seeds in snip["test_accuracy"]["empty_layers"].values())


# --- bad input -----------------------------------------------------------------------------------
