"""Children of forked trunks: noise, masks, and heights."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from recipes import stability
from recipes.common import data, lanes, models, sets, settings
from recipes.common.lanes import Lane
from tests.recipes import running


@pytest.mark.full
def test_every_fork_has_every_pair_and_every_child(finished):
    records = finished.records
    assert [record["step"] for record in records] == [0, 12, 24]
    for record in records:
        for arm in ("dense", "sparse"):
            for name in ("error", "loss"):
                for height in ("instability", "barrier"):
                    assert np.shape(record[arm][f"{name}_{height}"]) == (2, 3)
                assert np.shape(record[arm][f"test_{name}"]) == (2, 3)


@pytest.mark.full
def test_children_forked_at_the_end_are_equal(finished):
    # no noise is left: exactly 0, and all children of a trunk err alike
    last = finished.records[-1]
    for arm in ("dense", "sparse"):
        for quantity in ("error", "loss"):
            assert not np.any(last[arm][f"{quantity}_instability"])
            assert np.ptp(last[arm][f"test_{quantity}"], axis=1).max() == 0
    first = finished.records[0]
    assert np.all(np.array(first["dense"]["loss_instability"]) != 0)


@pytest.mark.full
def test_the_summary_is_exact_numbers(finished):
    summary = finished.summary
    weights = 64 * 256 + 256 * 128 + 128 * 10
    assert summary["sparsity"] == round(0.8 * weights) / weights
    assert summary["running_statistics"] is None
    for arm in ("dense", "sparse"):
        for fork, record in zip(summary[arm], finished.records, strict=True):
            said = fork["error_instability"]
            assert said["per_seed"] == np.mean(record[arm]["error_instability"], axis=1).tolist()
            assert said["error"] == pytest.approx(np.std(said["per_seed"], ddof=1) / np.sqrt(2))


@pytest.mark.full
def test_the_model_is_the_pruned_trunks(finished):
    params, _, masks = finished.model()
    kernel, mask = params["Dense_0"]["kernel"], masks["Dense_0"]["kernel"]
    assert not kernel[~mask].any() and kernel.shape == (2, 64, 256)
    kept = sum(int(m[0].sum()) for m in jax.tree.leaves(masks))
    assert kept == 50432 - round(0.8 * 50432)


@pytest.mark.full
def test_one_seed_with_random_masks(tmp_path):
    flags = "--seeds 1 --forks 12 --mask random --schedule cosine"
    one = running.varied("stability", flags, tmp_path / "one")
    fork = one.summary["dense"][0]
    assert fork["step"] == 12 and fork["loss_instability"]["error"] > 0  # the jackknife's
    said = "standard error over children, by the jackknife"
    assert said in (one.out / "report.md").read_text()


# --- the method -----------------------------------------------------------------------------------

SEEDS, CHILDREN, STEPS = 2, 2, 6


@pytest.fixture(scope="module")
def study():
    """Of a small network, with Adam by a schedule; two seeds."""
    config = stability.Config(seeds=SEEDS, steps=STEPS, batch_size=16, forks=(3,), log_every=2)
    config = replace(config, learning_rate=1e-2, schedule="cosine", sparsity=0.5)
    digits = data.load("digits", train_examples=96)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "model", lambda *args: models.MLP((8,), 10))
        return config, stability.study_of(config, digits)


def trunk_at(study, step):
    _, s = study
    state = lanes.begin(s.program, lanes.initial(s.program, s.keys), Lane(s.keys))
    return lanes.train(s.program, state, Lane(s.keys), step, lambda step, state: None)


@pytest.fixture(scope="module")
def trunk(study):
    return trunk_at(study, 3)


@pytest.fixture(scope="module")
def masks(study, trunk):
    config, s = study
    return stability.sparse_masks(config, s, None, trunk)


def kernels_of(children):
    """(arms, seeds, children, ...)."""
    return children.params["Dense_0"]["kernel"].reshape(2, SEEDS, CHILDREN, 64, 8)


@pytest.mark.full
def test_children_start_as_their_trunk(study, trunk, masks):
    children, lane = stability.fork(study[1], trunk, masks, CHILDREN)
    keys = jax.random.key_data(lane.order)
    assert len(np.unique(keys, axis=0)) == 4
    np.testing.assert_array_equal(*keys.reshape(2, 4, -1))  # noise is paired
    kernel, own = kernels_of(children), trunk.params["Dense_0"]["kernel"]
    for child in range(CHILDREN):
        np.testing.assert_array_equal(kernel[0, :, child], own)
        sparse = jnp.where(masks["Dense_0"]["kernel"], own, 0)
        np.testing.assert_array_equal(kernel[1, :, child], sparse)
    assert children.opt_state.step.tolist() == [3] * 8
    assert children.opt_state.inner_state[0].count.tolist() == [3] * 8
    held = children.network.masks["Dense_0"]["kernel"]
    assert held[:4].all() and float(held[4:].mean()) == pytest.approx(0.5, abs=0.1)


@pytest.mark.full
def test_children_end_at_the_same_position_under_their_masks(study, trunk, masks):
    _, s = study
    children, lane = stability.fork(s, trunk, masks, CHILDREN)
    seen = []
    see = lambda step, state: seen.append(step)
    children = lanes.train(s.program, children, lane, STEPS, see, 3)
    assert seen == [5, 6]
    assert children.opt_state.inner_state[0].count.tolist() == [STEPS] * 8
    kernel, pruned = kernels_of(children), ~masks["Dense_0"]["kernel"]
    for child in range(CHILDREN):
        assert not kernel[1, :, child][pruned].any()
    assert not np.allclose(kernel[1, 0, 0], kernel[1, 0, 1])


@pytest.mark.full
def test_a_dense_child_with_the_order_of_its_trunk_is_its_trunk(study, trunk, masks):
    _, s = study
    children, _ = stability.fork(s, trunk, masks, CHILDREN)
    same = Lane(lanes.tile(lanes.repeat(s.keys, CHILDREN), 2))
    children = lanes.train(s.program, children, same, STEPS, lambda step, state: None, 3)
    whole = trunk_at(study, STEPS).params["Dense_0"]["kernel"]
    for child in range(CHILDREN):
        np.testing.assert_allclose(kernels_of(children)[0, :, child], whole, rtol=1e-4, atol=1e-6)
    # the same noise: exactly no instability
    measure = lambda variables: {"x": jnp.sum(variables["params"]["Dense_0"]["kernel"] ** 2)}
    paths = stability.between_siblings(s._replace(measure=measure), children, CHILDREN, 5)["x"]
    assert paths.shape == (2, SEEDS, 1, 5) and not np.ptp(paths, axis=-1).any()


def test_what_each_child_comes_to_is_at_the_ends_of_its_paths():
    ends = np.array([0.1, 0.2, 0.4])
    first, second = np.triu_indices(3, k=1)
    path = np.stack([ends[first], np.full(3, 0.5), ends[second]], axis=1)  # (pairs, points)
    values = {"error": np.stack([0 * path[None], path[None]])}
    told = stability.heights(values, 1, children=3)
    assert told["test_error"] == [[0.1, 0.2, 0.4]]
    np.testing.assert_allclose(told["error_instability"], [[0.35, 0.25, 0.2]])


@pytest.mark.full
def test_random_masks_differ_from_trunk_to_trunk(study, trunk):
    config, s = study
    config = replace(config, mask="random", sparsity=0.8)
    masks = stability.sparse_masks(config, s, None, trunk)
    assert masks["Dense_0"]["bias"] is None
    assert jax.vmap(jp.sparsity)(masks) == pytest.approx([0.8, 0.8], abs=2e-3)
    assert float(jp.pairwise(jp.overlap, masks)[0, 1]) < 0.5


@pytest.mark.full
def test_one_round_gives_the_largest_weights_of_the_trunk_and_more_rounds_others(study):
    config, s = study
    end, journal = trunk_at(study, STEPS), running.Straight()
    magnitude = stability.sparse_masks(config, s, None, end)
    imp = lambda rounds: stability.sparse_masks(
        replace(config, mask="imp", rounds=rounds), s, journal, end
    )
    chex.assert_trees_all_equal(imp(1), magnitude)
    assert not journal.names
    two = imp(2)
    assert journal.names == ["round 2 of 2"]  # the trunks are the first
    assert jax.vmap(jp.sparsity)(two).tolist() == jax.vmap(jp.sparsity)(magnitude).tolist()
    # what both rounds prune: the first by the trunk, the second by the ticket of the first
    first = stability.sparse_masks(replace(config, sparsity=1 - 0.5**0.5), s, None, end)
    inside = jax.tree.map(lambda inner, outer: bool((inner <= outer).all()), two, first)
    assert all(jax.tree.leaves(inside))
    assert (jax.vmap(jp.overlap)(two, magnitude) < 1).all()


@pytest.mark.full
def test_the_masks_of_a_saved_run(finished, tmp_path):
    again = running.varied("stability", f"--forks 24 --mask {finished.out}", tmp_path / "again")
    chex.assert_trees_all_equal(again.model()[2], finished.model()[2])
    assert again.records[0]["sparse"] == finished.records[-1]["sparse"]


@pytest.mark.full
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--mask imps", "did you mean 'imp'"),
        ("--mask nowhere/model", "or the folder of a saved run or model, which is no folder here"),
        ("--rounds 3", "--rounds belongs to --mask imp or distilled; got --mask magnitude"),
        ("--mask {out} --seeds 3", "masks of 2 networks, and this run has 3; take --seeds 2"),
        (
            "--mask {out} --model lenet",
            "'Dense_0/kernel' is bool (64, 256) there and bool (64, 300",
        ),
        ("--mask {out}/plots", "there is no model in"),
    ],
)
def test_masks_that_do_not_fit(finished, tmp_path, capsys, flags, said):
    with pytest.raises(SystemExit):
        running.varied("stability", flags.format(out=finished.out), tmp_path / "refused")
    assert said in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()


# --- what is asked for ----------------------------------------------------------------------------


def test_forks_unless_given():
    assert stability.forks_of(stability.Config(), 1000) == [0, 20, 100, 400]
    assert stability.forks_of(stability.Config(), 4) == [0, 2]


@pytest.mark.full
def test_rounds_on_the_training_set_itself_give_the_masks_of_imp(study):
    # every set holds all examples, in their order: the trainings are those of imp, to the bit
    config, s = study
    examples = s.program.data
    alike = lambda x: jnp.tile(jnp.asarray(x), (SEEDS, *[1] * x.ndim))
    pupil = sets.Pupil(s.keys, images=alike(examples.images), labels=alike(examples.labels))
    tx = lambda lane: jp.sparsify(settings.optimizer(config, s.steps), jp.fixed(lanes.keep_all))
    program = sets.program(s.program.module, tx, len(examples.labels), 16, 2)
    end, journal = trunk_at(study, STEPS), running.Straight()
    masks = lambda how, study: stability.sparse_masks(
        replace(config, mask=how, rounds=2), study, journal, end
    )
    distilled = masks("distilled", s._replace(on_sets=(program, pupil)))
    chex.assert_trees_all_equal(distilled, masks("imp", s))
    assert journal.names == ["round 1 of 2", "round 2 of 2", "round 2 of 2"]
