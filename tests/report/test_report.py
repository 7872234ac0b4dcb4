"""The report: its sums, numbers to check by eye, what it warns of, and how it looks."""

import builtins
import dataclasses
import json
import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from jaxprune.report.rendering import WIDTH
from jaxprune.report.tally import wanted


def pruned(params, allocation=jp.uniform, sparsity=0.75, prunable=jp.kernels):
    """Params with masks applied, and the masks."""
    masks = jp.select(jp.magnitude(prunable(params)), allocation, sparsity)
    return jp.apply_masks(params, masks), masks


def apply_mlp(params, x):
    hidden = nn.relu(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"][None])
    return hidden @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"][None]


# --- laws ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("allocation", [jp.uniform, jp.erk, jp.global_threshold])
def test_every_allocation_is_met_exactly(params, allocation):
    scores = jp.magnitude(jp.kernels(params))
    params, masks = pruned(params, allocation, 0.7)
    result = jp.report(params, masks, target=allocation(scores, 0.7))
    for layer in result.layers:
        assert layer.kept == layer.target_kept == int(masks[layer.path[:7]]["kernel"].sum())
    assert result.prunable.target_kept == result.prunable.kept
    assert "+/-" not in str(result)


def test_sums_are_sums_and_count_what_is_never_pruned(params):
    result = jp.report(*pruned(params), apply_mlp, jnp.ones((3, 4)), target=0.75)
    for field in ("kept", "total", "outside", "flops", "sparse_flops"):
        of = lambda layer, field=field: getattr(layer, field)
        assert of(result.prunable) == sum(map(of, result.layers))
        assert of(result.total) == sum(
            of(part) for part in (result.prunable, result.never_pruned, result.activations)
        )
    assert result.total.total == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert result.prunable.sparsity == float(jp.sparsity(pruned(params)[1]))


def test_to_dict_is_json_and_says_everything(params):
    result = jp.report(*pruned(params), apply_mlp, jnp.ones((3, 4)), target=0.75)
    table = result.to_dict()
    assert json.loads(json.dumps(table)) == table
    fields = {field.name for field in dataclasses.fields(result)}
    assert set(table) == fields | {"warnings"}
    assert set(table["layers"][0]) == {
        *(field.name for field in dataclasses.fields(result.layers[0])),
        *("sparsity", "target"),
    }


def test_a_report_is_a_value(params):
    first, second = jp.report(*pruned(params)), jp.report(*pruned(params))
    assert first == second
    assert first != jp.report(*pruned(params, sparsity=0.5))
    assert hash(first) == hash(second)
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.notes = ()


# --- numbers to check by eye ---------------------------------------------------------------------

LENET = {"Dense_0": (784, 300), "Dense_1": (300, 100), "Dense_2": (100, 10)}


def apply_lenet(params, x):
    for layer in params.values():
        x = jnp.tanh(x @ layer["kernel"])
    return x


@pytest.fixture
def lenet():
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        name: {"bias": jnp.ones(shape[1]), "kernel": jax.random.normal(key, shape)}
        for key, (name, shape) in zip(keys, LENET.items(), strict=True)
    }


def test_lenet_300_100_at_95_percent(lenet):
    result = jp.report(
        *pruned(lenet, jp.uniform, 0.95), apply_lenet, jnp.ones((1, 784)), target=0.95
    )
    assert [layer.kept for layer in result.layers] == [11_760, 1_500, 50]
    assert [layer.flops for layer in result.layers] == [470_400, 60_000, 2_000]
    assert [layer.sparse_flops for layer in result.layers] == [23_520, 3_000, 100]
    assert (result.prunable.kept, result.prunable.total) == (13_310, 266_200)
    assert (result.total.kept, result.total.total) == (13_720, 266_610)
    assert (result.total.flops, result.total.sparse_flops) == (532_400, 26_620)
    assert (result.prunable.sparsity, result.prunable.target) == (0.95, 0.95)
    assert str(result) == repr(result)
    assert str(result).splitlines() == [
        "layer               shape    kept    total  sparsity  target    FLOPs   sparse",
        "------------------------------------------------------------------------------",
        "Dense_0/kernel    784x300  11,760  235,200    0.9500          470.4 k  23.52 k",
        "Dense_1/kernel    300x100   1,500   30,000    0.9500          60.00 k    3,000",
        "Dense_2/kernel     100x10      50    1,000    0.9500            2,000      100",
        "------------------------------------------------------------------------------",
        "prunable                   13,310  266,200    0.9500  0.9500  532.4 k  26.62 k",
        "never pruned (3)              410      410    0.0000                0        0",
        "total                      13,720  266,610    0.9485          532.4 k  26.62 k",
        "FLOPs of one call on float32[1, 784]; sparse: what a kernel that skips zeros would do.",
    ]


def test_flops_of_activations_are_never_sparse():
    params = {"q": jnp.ones((8, 4)), "k": jnp.ones((8, 4))}
    masks = jax.tree.map(lambda w: jnp.arange(w.size).reshape(w.shape) % 2 == 0, params)
    scores = lambda p, x: (x @ p["q"]) @ (x @ p["k"]).T
    result = jp.report(jp.apply_masks(params, masks), masks, scores, jnp.ones((5, 8)))
    assert [(layer.flops, layer.sparse_flops) for layer in result.layers] == [(320, 160)] * 2
    assert (result.activations.flops, result.activations.sparse_flops) == (200, 200)
    assert (result.total.flops, result.total.sparse_flops) == (840, 520)
    assert re.search(r"no weights +200 +200", str(result))


@pytest.mark.parametrize(
    "target, kept",
    [
        ({"w": 0.25}, 75),
        ({"w": 25}, 75),
        ({"w": np.int64(25)}, 75),
        ({"w": jnp.int32(25)}, 75),
        ({"w": jnp.float32(0.25)}, 75),
        ({"w": np.float64(0.145)}, 86),  # of 14.5 weights 14: half to even
        ({"w": np.array([10, 40])}, 50),  # one a seed
        ({"w": jnp.array([0.1, 0.4])}, 75),
        ({"w": 100}, 0),
    ],
)
def test_targets_are_fractions_or_counts(target, kept):
    w = jnp.ones((2, 50))
    assert jp.report({"w": w}, {"w": w > 0}, target=target).layers[0].target_kept == kept


def test_a_number_is_the_target_of_all_weights_together(params):
    params, masks = pruned(params, jp.global_threshold, 0.75)
    for target in (0.75, 36, jnp.float32(0.75)):
        result = jp.report(params, masks, target=target)
        assert result.prunable.target == 0.75
        assert all(layer.target is None for layer in result.layers)


def test_a_target_that_was_missed_shows_by_how_much(params):
    params, masks = pruned(params, sparsity=0.75)
    result = jp.report(
        params, masks, target={"Dense_0": {"kernel": 0.5}, "Dense_1": {"kernel": 13}}
    )
    assert [layer.target_kept for layer in result.layers] == [16, 3]
    assert re.search(r"Dense_0/kernel .* 0.7500  0.5000   -8\n", str(result))
    assert re.search(r"Dense_1/kernel .* 0.7500  0.8125   \+1\n", str(result))
    # nothing is known of the whole where a layer has no target
    half = jp.report(params, masks, target={"Dense_0": {"kernel": 0.5}, "Dense_1": None})
    assert half.prunable.target is half.layers[1].target is None


def test_float32_can_name_one_weight_among_25_million():
    # 0.9 * 25,557,032 is 23,001,328.8; in float32 it is 23,001,328
    for target in (0.9, np.float32(0.9), jnp.float32(0.9), np.float64(0.9)):
        assert wanted(target, {"w": 25_557_032})[1] == 25_557_032 - 23_001_329


# --- what it warns of ----------------------------------------------------------------------------


def test_a_layer_without_weights_is_named(params):
    masks = jax.tree.map(lambda w: jnp.zeros(w.shape, bool), jp.kernels(params))
    masks["Dense_0"]["kernel"] = ~masks["Dense_0"]["kernel"]
    params = jp.apply_masks(params, masks)
    with pytest.warns(UserWarning, match="no weight at all is kept in 'Dense_1/kernel'") as caught:
        result = jp.report(params, masks)
    assert caught[0].filename == __file__
    assert len(caught) == len(result.warnings) == 1
    assert "\nwarning: no weight at all is kept in 'Dense_1/kernel'" in str(result)


def test_weights_outside_their_masks_are_counted(params):
    tx = optax.chain(
        jp.sparsify(optax.sgd(0.1), jp.prune(jp.magnitude, jp.uniform, 0.75)),
        optax.scale(0.5),  # breaks the zeros: sparsify should be last
    )
    updates, state = tx.update(params, tx.init(params), params)
    params = optax.apply_updates(params, updates)
    with pytest.warns(UserWarning, match="36 weights are not zero .* last in the optax.chain"):
        result = jp.report(params, jp.get_masks(state))
    assert [layer.outside for layer in result.layers] == [24, 12]
    assert re.search(r"Dense_0/kernel .* 24\n", str(result))


def test_nan_outside_a_mask_is_seen_and_negative_zero_is_not():
    params = {"w": jnp.array([[1.0, jnp.nan, -0.0, jnp.inf]])}
    with pytest.warns(UserWarning, match="2 weights"):
        assert (
            jp.report(params, {"w": jnp.array([[True, False, False, False]])}).prunable.outside == 2
        )


def test_an_empty_leaf_is_not_dead():
    params = {"none": jnp.ones((0, 3)), "w": jnp.ones((2, 2))}
    result = jp.report(params, jax.tree.map(lambda w: w > 0, params))
    assert (result.layers[0].sparsity, result.warnings) == (0.0, ())


# --- any tree, any place -------------------------------------------------------------------------


class Pair(NamedTuple):
    first: Any
    second: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Net:
    head: Any
    body: Any


@pytest.mark.parametrize(
    "tree, paths",
    [
        (FrozenDict({"a": {"w": 0}, "b": 1}), ["a/w", "b"]),
        ((0, 1), ["0", "1"]),
        (Pair(0, 1), ["first", "second"]),
        (Net(0, 1), ["head", "body"]),
        ([0] * 11, [str(i) for i in range(11)]),
        ({f"Conv_{i}": 0 for i in range(11)}, [f"Conv_{i}" for i in range(11)]),
        (0, [""]),
    ],
    ids=["FrozenDict", "tuple", "NamedTuple", "dataclass", "list", "dict", "leaf"],
)
def test_any_pytree(tree, paths):
    params, masks = pruned(jax.tree.map(lambda _: jnp.ones((4, 3)), tree), prunable=lambda p: p)
    result = jp.report(params, masks, target=jp.uniform(masks, 0.75))
    assert [layer.path for layer in result.layers] == paths
    assert all(layer.kept == layer.target_kept == 3 for layer in result.layers)


@pytest.mark.full
def test_nnx_params_with_masks_found_in_the_optimizer():
    model = nnx.Sequential(
        nnx.Linear(20, 30, rngs=nnx.Rngs(0)), nnx.BatchNorm(30, rngs=nnx.Rngs(0))
    )
    model.eval()
    tx = jp.sparsify(optax.adam(1e-3), jp.prune(jp.magnitude, jp.uniform, 0.9))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    x = jnp.ones((4, 20))
    optimizer.update(model, nnx.grad(lambda model: model(x).sum())(model))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    result = jp.report(
        params,
        jp.get_masks(optimizer.opt_state),
        lambda params, x: nnx.merge(graph, params, rest)(x),
        x,
        target=jp.uniform(jp.kernels(params), 0.9),
    )
    (layer,) = result.layers
    assert layer.path == "layers/0/kernel"
    assert (layer.kept, layer.target_kept, layer.flops, layer.sparse_flops) == (60, 60, 4800, 480)
    assert result.never_pruned.total == 3 * 30


def test_a_stack_of_seeds_adds_up(params):
    stack = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 1]), params)
    sparsities = jax.vmap(lambda p: jp.global_threshold(jp.magnitude(jp.kernels(p)), 0.75))(stack)
    stack, masks = jax.vmap(lambda p: pruned(p, jp.global_threshold))(stack)
    apply_fn = jax.vmap(apply_mlp, in_axes=(0, None))
    result = jp.report(stack, masks, apply_fn, jnp.ones((3, 4)), target=sparsities)
    assert [layer.shape for layer in result.layers] == [(2, 4, 8), (2, 8, 2)]
    assert result.prunable.kept == result.prunable.target_kept == 2 * 12
    assert result.prunable.flops == 2 * 2 * 3 * (32 + 16)


def test_sharded_params(params, mesh):
    params, masks = pruned(params)
    sharding = NamedSharding(mesh, P(None, "d"))
    put = lambda tree: (
        tree
        | {
            "Dense_0": tree["Dense_0"]
            | {"kernel": jax.device_put(tree["Dense_0"]["kernel"], sharding)}
        }
    )
    assert jp.report(put(params), put(masks)) == jp.report(params, masks)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int8])
def test_dtypes_and_arrays_of_numpy(dtype):
    params = {
        "w": np.array([[1, 0, 2, 0]]).astype(dtype),
        "count": np.array(3),
        "key": jax.random.key(0),
    }
    result = jp.report(params, {"w": params["w"] != 0, "count": None, "key": None}, target=0.5)
    assert (result.prunable.kept, result.prunable.target_kept) == (2, 2)
    assert result.total.total == 4  # a counter and a random key are no parameters


# --- how it looks --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*weights are not zero")
@pytest.mark.filterwarnings("ignore:.*no weight at all")
def test_long_paths_get_headings_and_the_table_fits():
    layer = {"residual_projection": {"kernel": jnp.ones((3, 3, 16, 16)), "bias": jnp.ones(16)}}
    params = {"conv_init": {"kernel": jnp.ones((7, 7, 3, 64))}}
    params |= {f"bottleneck_resnet_stage_{stage}": layer for stage in range(2)}
    masks = jax.tree.map(lambda w: jnp.zeros(w.shape, bool), jp.kernels(params))

    def apply_fn(params, x):
        stages = [params[f"bottleneck_resnet_stage_{stage}"] for stage in range(2)]
        return [x @ stage["residual_projection"]["kernel"] for stage in stages]

    lines = str(jp.report(params, masks)).splitlines()
    assert lines[2].startswith("bottleneck_resnet_stage_0/residual_projection/kernel  3x3x16x16  ")
    result = jp.report(params, masks, apply_fn, jnp.ones((1, 16)), target=jp.uniform(masks, 0.5))
    lines = str(result).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert lines[2] == "bottleneck_resnet_stage_0/residual_projection"
    assert lines[3].startswith("  kernel          3x3x16x16  ")
    assert lines[6].startswith("conv_init/kernel   7x7x3x64  ")


def test_the_plot_has_a_bar_a_layer_from_zero_and_marks_its_target(lenet):
    from matplotlib.figure import Figure

    params, masks = pruned(lenet, jp.uniform, 0.95)
    result = jp.report(params, masks, target=jp.uniform(jp.magnitude(jp.kernels(lenet)), 0.95))
    figure = result.plot()
    (ax,) = figure.axes
    assert isinstance(figure, Figure)
    widths = [bar.get_width() for bar in ax.patches]
    assert widths == pytest.approx([1 - layer.sparsity for layer in result.layers])
    assert ax.get_xscale() == "linear" and ax.get_xlim()[0] == 0
    assert {bar.get_x() for bar in ax.patches} == {0}
    assert [label.get_text() for label in ax.get_yticklabels()] == [f"{d}/kernel" for d in LENET]
    marks = next(line for line in ax.lines if line.get_label() == "target")
    assert list(marks.get_xdata()) == pytest.approx([0.05] * len(LENET))


def test_the_plot_has_dots_on_a_logarithmic_axis(lenet):
    """Which has no zero that a bar could begin at; a dead layer has no dot, and a note."""
    params, masks = pruned(lenet, jp.erk, 0.95)  # 3 % to 70 %
    masks["Dense_1"]["kernel"] &= False
    params = jp.apply_masks(params, masks)
    with pytest.warns(match="no weight at all"):
        result = jp.report(params, masks, target=jp.erk(jp.magnitude(jp.kernels(lenet)), 0.95))
    (ax,) = result.plot().axes
    assert ax.get_xscale() == "log" and not ax.patches
    dots = next(line for line in ax.lines if line.get_label() == "kept")
    alive = [i for i, layer in enumerate(result.layers) if layer.kept]
    assert list(dots.get_ydata()) == alive == [0, 2]
    kept = [1 - result.layers[i].sparsity for i in alive]
    assert list(dots.get_xdata()) == pytest.approx(kept)
    assert ax.texts[1].get_text() == "none kept"


@pytest.mark.filterwarnings("ignore:.*no weight at all")
def test_the_plot_of_a_dead_layer_into_given_axes(params, tmp_path):
    from matplotlib.figure import Figure

    masks = jax.tree.map(lambda w: jnp.zeros(w.shape, bool), jp.kernels(params))
    masks["Dense_1"]["kernel"] = masks["Dense_1"]["kernel"].at[0, 0].set(True)
    figure = Figure()
    left, right = figure.subplots(1, 2)
    report = jp.report(jp.apply_masks(params, masks), masks, target=jp.uniform(masks, 0.9))
    assert report.plot(right) is figure
    assert not left.patches and len(right.patches) == 2
    assert [text.get_text() for text in right.texts] == ["none kept", "6.25%"]
    figure.savefig(tmp_path / "plot.png")


def test_without_matplotlib_the_plot_names_the_extra(params, monkeypatch):
    imported = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    result = jp.report(*pruned(params))
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"report\.plot needs matplotlib: pip install matplotlib"):
        result.plot()


# --- bad input -----------------------------------------------------------------------------------


def test_masks_that_are_none(params):
    with pytest.raises(TypeError, match=r"'Dense_0/kernel' is float32\. From gates: .*g > 0"):
        jp.report(params, jp.kernels(params))
    with pytest.raises(ValueError, match="the mask of every leaf is None"):
        jp.report(params, jax.tree.map(lambda _: None, params))
    with pytest.raises(TypeError, match="that of '0' is str"):
        jp.report((jnp.ones(2),), ("kept",))


def test_masks_of_other_params(params):
    _, masks = pruned(params)
    with pytest.raises(ValueError, match="'Dense_1/kernel' has shape"):
        jp.report(params | {"Dense_1": {"kernel": jnp.ones((8, 3)), "bias": jnp.ones(3)}}, masks)
    with pytest.raises(ValueError, match="these masks must be like the params"):
        jp.report(params, {"Dense_0": masks["Dense_0"]})


def test_values_must_be_known(params):
    params, masks = pruned(params)
    with pytest.raises(TypeError, match=r"values; those of 'Dense_0/kernel' .* outside jit"):
        jax.jit(jp.report)(params, masks)
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda params: jp.report(params, masks))(params)
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda sparsity: jp.report(params, masks, target=sparsity))(0.5)
    with pytest.raises(TypeError, match="outside jit"):
        jp.report(jax.eval_shape(lambda: params), masks)


@pytest.mark.parametrize(
    "target, error, message",
    [
        (90.0, ValueError, r"target of all weights: sparsity is .* got 90\. For 90% write 0\.9"),
        ({"w": 1.5}, ValueError, r"target of 'w': sparsity is the fraction pruned"),
        ({"w": float("nan")}, ValueError, "target of 'w'"),
        ({"w": 7}, ValueError, "prunes 7 of the 6 weights of 'w'. An int is a number of weights"),
        ({"w": -1}, ValueError, "prunes -1 of the 6"),
        ({"w": "0.9"}, TypeError, "target of 'w': sparsity must be a number"),
        ({"w": True}, TypeError, "target of 'w': sparsity must be a number"),
        ({"w": jnp.array([0.1] * 4)}, ValueError, r"target of 'w' has shape \(4,\)"),
        ({"w": jnp.zeros(0)}, ValueError, r"target of 'w' has shape \(0,\)"),
        ({"v": 0.5}, ValueError, "sparsities for 'v', where there is no mask"),
        ({"w": 0.5, "b": 0.5}, ValueError, "sparsities for 'b', where there is no mask"),
    ],
)
def test_bad_targets(target, error, message):
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    with pytest.raises(error, match=message):
        jp.report(params, {"w": params["w"] > 0, "b": None}, target=target)


def test_a_function_must_be_one(params):
    params, masks = pruned(params)
    with pytest.raises(TypeError, match="apply_fn is a function"):
        jp.report(params, masks, jnp.ones((3, 4)))


# --- what was ever active ------------------------------------------------------------------------


def test_the_fraction_that_was_ever_active_is_a_column():
    params = {"kernel": jnp.array([[3.0, 0.0, 0.0], [0.0, -4.0, 0.0]]), "bias": jnp.ones(3)}
    masks = {"kernel": params["kernel"] != 0, "bias": None}
    ever = {"kernel": jnp.array([[True, True, False], [False, True, True]]), "bias": None}
    result = jp.report(params, masks, ever_active=ever)
    assert result.layers[0].ever_active == result.prunable.ever_active == 4
    assert str(result).splitlines()[0].split()[-1] == "ever"
    assert str(result).splitlines()[2].split()[-1] == "0.6667"
    assert result.to_dict()["layers"][0]["ever_active"] == 4
    assert "ever" not in str(jp.report(params, masks)).splitlines()[0]


@pytest.mark.full
def test_what_was_ever_active_of_a_run():
    params = {"kernel": jax.random.normal(jax.random.key(0), (10, 20))}
    tx = jp.sparsify(optax.sgd(0.1), jp.itop(jp.set(jax.random.key(0), 0.8, 0.5)))
    state = tx.init(params)
    params = jp.apply_masks(params, jp.get_masks(state))
    updates, state = tx.update(params, state, params)
    params = optax.apply_updates(params, updates)
    seen = jp.dynamic.ever_active(state)
    row = jp.report(params, jp.get_masks(state), ever_active=seen).layers[0]
    assert row.kept == 40 < row.ever_active == int(seen["kernel"].sum()) <= 60


def test_ever_active_of_other_params_or_of_no_bool(params):
    params, masks = pruned(params)
    with pytest.raises(ValueError, match="these masks must be like the params"):
        jp.report(params, masks, ever_active={"kernel": jnp.ones((2, 2), bool)})
    with pytest.raises(TypeError, match="report needs masks of bool"):
        jp.report(params, masks, ever_active=jax.tree.map(jnp.ones_like, params))
