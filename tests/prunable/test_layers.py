"""Stacked layers are pruned as layers: a scanned network gets the masks of the unrolled one."""

import functools
import re
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from jaxprune.prunable.layers import folded, split_like, visible_stacks
from jaxprune.prunable.layout import Layout, axes_of, matrix_shape
from jaxprune.trees import map_named, named_leaves
from recipes.sharded import collectives
from tests.quick import pairs, quick
from tests.transforms import DENSE_WEIGHTS, TRANSFORMS

N = 3
# layers of different scale, so that one layer's sparsity is not the other's
LAYERS = [
    {"kernel": (1 + i) * jax.random.normal(jax.random.key(i), (8, 8)), "bias": jnp.ones(8) * i}
    for i in range(N)
]
HEAD = {"kernel": 3 * jax.random.normal(jax.random.key(N), (8, 4)), "bias": jnp.zeros(4)}
LIST = {"layers": LAYERS, "out": HEAD}
SCAN = {"layers": jax.tree.map(lambda *ws: jnp.stack(ws), *LAYERS), "out": HEAD}


def as_list(scan):
    """The params of the scanned network as those of the unrolled one."""
    layers = [jax.tree.map(lambda w, i=i: w[i], scan["layers"]) for i in range(N)]
    return {"layers": layers, "out": scan["out"]}


def loss(params):
    leaves = jax.tree.leaves(params)
    at = [jnp.sin(jnp.arange(w.size, dtype=w.dtype)).reshape(w.shape) for w in leaves]
    return sum(jnp.sum((1.5 + c) * (w - c) ** 2) for w, c in zip(leaves, at, strict=True))


def run(make, params, as_unrolled):
    """Masks of three steps."""
    tx = make(params)

    def step(carry, _):
        params, state = carry
        grads = jax.grad(lambda p: loss(as_unrolled(p)))(params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), as_unrolled(jp.get_masks(state))

    return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=3)[1])(params)


EVERY = {
    **{k: lambda p, t=t: jp.sparsify(optax.sgd(0.02), t(p)) for k, t in TRANSFORMS.items()},
    **{k: functools.partial(t, inner=optax.sgd(0.02)) for k, t in DENSE_WEIGHTS.items()},
    "top_kast_erk": lambda p: jp.train_only(optax.sgd(0.02), jp.top_kast(0.8, 0.5, jp.erk)),
}
del EVERY["neurons"]  # of a network of its own
IN_BLOCKS = [EVERY.pop(name) for name in list(EVERY) if name.endswith("in_blocks")]


@pytest.mark.full
@pytest.mark.parametrize("transform", quick(EVERY, "gradual_global", "rigl"))
def test_a_scanned_network_gets_the_masks_of_the_unrolled_one(transform):
    make = EVERY[transform]
    wanted, found = run(make, LIST, lambda p: p), run(make, SCAN, as_list)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize("make", IN_BLOCKS)
def test_blocks_of_a_stack_are_refused(make):
    with pytest.raises(
        ValueError, match=r"'layers/0/kernel' is a layer of a stack.*Leave the stack"
    ):
        make(SCAN).init(SCAN)


LAMP = jp.lamp()


@pytest.mark.full
@pytest.mark.parametrize(
    ("score", "allocation"),
    pairs(
        [jp.magnitude, LAMP, jp.random(jax.random.key(1))],
        [jp.uniform, jp.er, jp.erk, jp.global_threshold],
        LAMP,
        jp.global_threshold,
    ),
)
def test_one_call_prunes_layers_one_by_one(score, allocation):
    wanted = jp.select(score(jp.kernels(LIST)), allocation, 0.5)
    masks = jp.select(score(jp.kernels(SCAN)), allocation, 0.5)
    jax.tree.map(np.testing.assert_array_equal, as_list(folded(masks)), wanted)
    assert dict(named_leaves(masks)).keys() == dict(named_leaves(wanted)).keys()
    # what takes masks takes these
    pruned = as_list(jp.apply_masks(SCAN, masks))
    jax.tree.map(np.testing.assert_array_equal, pruned, jp.apply_masks(LIST, wanted))
    assert jp.overlap(masks, folded(masks)) == jp.overlap(folded(masks), masks) == 1
    assert jp.sparsity(masks) == jp.sparsity(wanted)


@pytest.mark.full
def test_fisher_finds_the_moments_of_a_stack():
    """The optimizer's state has stacks where the params that are scored have layers."""
    schedule = optax.polynomial_schedule(0.0, 0.75, 1, 2)
    for score in (jp.fisher, jp.lamp(jp.fisher)):
        transform = jp.prune(score, jp.global_threshold, schedule)
        make = lambda p, t=transform: jp.sparsify(optax.adam(0.02), t)
        wanted, found = run(make, LIST, lambda p: p), run(make, SCAN, as_list)
        jax.tree.map(np.testing.assert_array_equal, found, wanted)
    tx = jp.sparsify(optax.sgd(0.1), jp.prune(jp.fisher, jp.uniform, 0.5))
    with pytest.raises(ValueError, match=r"`nu` of 'layers/kernel', shape \(3, 8, 8\)"):
        tx.update(SCAN, tx.init(SCAN), SCAN)


def test_pruning_at_initialisation_scores_layers():
    on_scan = lambda p: loss(as_list(p))
    for masks in (
        lambda of, p: jp.select(jp.at_init.snip(of, p), jp.uniform, 0.75),
        lambda of, p: jp.select(jp.at_init.grasp(of, p), jp.erk, 0.75),
        lambda of, p: jp.at_init.force(of, p, 0.75, rounds=2),
    ):
        found = as_list(folded(masks(on_scan, SCAN)))
        jax.tree.map(np.testing.assert_array_equal, found, masks(loss, LIST))


def test_collapsed_and_report_see_a_layer_that_is_dead():
    masks = jp.kernels(jax.tree.map(lambda w: w, SCAN))
    masks = jax.tree.map(lambda w: jnp.ones_like(w, bool), folded(masks))
    masks["layers"]["kernel"] = masks["layers"]["kernel"].at[1].set(False)
    dead = jp.at_init.empty_layers(masks, jp.kernels(SCAN))
    assert [path for path, is_empty in dead.items() if is_empty] == ["layers/1/kernel"]
    with pytest.warns(UserWarning, match="'layers/1/kernel'"):
        report = jp.report(jp.apply_masks(SCAN, masks), masks, target={"layers/kernel": 0.5})
    assert [row.path for row in report.layers] == [
        *(f"layers/{i}/kernel" for i in range(3)),
        "out/kernel",
    ]
    assert [row.kept for row in report.layers] == [64, 0, 64, 32]
    assert [row.target for row in report.layers] == [0.5, 0.5, 0.5, None]


def test_the_report_of_a_scanned_network_is_that_of_the_unrolled_one():
    def unrolled(params, x):
        for layer in params["layers"]:
            x = jnp.tanh(x @ layer["kernel"])
        return x @ params["out"]["kernel"]

    def scanned(params, x):
        step = lambda x, p: (jnp.tanh(x @ p["kernel"]), None)
        return jax.lax.scan(step, x, params["layers"])[0] @ params["out"]["kernel"]

    target = jp.erk(jp.kernels(SCAN), 0.75)
    masks = jp.select(jp.magnitude(jp.kernels(SCAN)), jp.erk, 0.75)
    report = lambda p, m, f, t: jp.report(jp.apply_masks(p, m), m, f, jnp.ones((1, 8)), target=t)
    scan, wanted = (
        report(SCAN, masks, scanned, target),
        report(LIST, as_list(folded(masks)), unrolled, jp.erk(jp.kernels(LIST), 0.75)),
    )
    assert scan.layers == wanted.layers
    assert scan.total == wanted.total


def test_an_idle_step_takes_no_stack_apart():
    tx = jp.every(10, jp.prune(jp.magnitude, jp.erk, optax.constant_schedule(0.5)))
    step = jax.jit(lambda s, p, step: tx.update(s, p, step=step))
    jaxpr = jax.make_jaxpr(step)(tx.init(SCAN), SCAN, jnp.int32(1)).jaxpr.eqns[0].params["jaxpr"]
    outside = {str(eqn.primitive) for eqn in jaxpr.eqns}
    assert "cond" in outside and not outside & {"slice", "concatenate", "squeeze"}


BIG = {
    "global": lambda score=jp.magnitude: jp.prune(
        score, jp.global_threshold, optax.constant_schedule(0.5)
    ),
    "erk": lambda: jp.prune(jp.saliency, jp.erk, optax.constant_schedule(0.5)),
    "rigl": lambda: jp.rigl(jax.random.key(0), 0.5),
    "granet": lambda: jp.granet(jax.random.key(0), optax.constant_schedule(0.5)),
    "dpf": lambda: jp.dpf(0.5),
    "top_kast": lambda: jp.top_kast(0.5, 0.25),
}


def compiled(transform, layers, width=128):
    shape = jax.ShapeDtypeStruct((layers, width, width), jnp.float32)
    params = {"layers": {"kernel": shape}, "out": jax.ShapeDtypeStruct((8, 4), jnp.float32)}
    step = jax.jit(
        lambda s, p, g: transform.update(s, p, grads=g, step=jnp.int32(1)), donate_argnums=0
    )
    return step.lower(jax.eval_shape(transform.init, params), params, params).compile()


@pytest.mark.parametrize("name", quick(BIG, "rigl"))
def test_no_copy_is_made_of_a_stack(name):
    weights = 4 * 128 * 128
    # bytes a weight: none, or where weights are dropped first, the masks between
    most = {"rigl": 1.1, "granet": 1.1}.get(name, 0.1)
    temporary = compiled(BIG[name](), 4).memory_analysis().temp_size_in_bytes
    assert temporary < most * weights


@pytest.mark.full
@pytest.mark.parametrize("name", ["global", "rigl"])
def test_a_program_is_as_long_for_many_layers_as_for_few(name):
    few, many = (compiled(BIG[name](), n, 16).as_text() for n in (3, 24))
    count = lambda hlo: len(re.findall(r" (reduce|fusion|while)\(", hlo))
    assert count(many) < 1.5 * count(few)


@pytest.mark.full
@pytest.mark.parametrize("name", quick(["rigl", "global", "erk"], "global"))
def test_layers_that_lie_on_other_devices_stay_there(name):
    mesh = jax.make_mesh((8,), ("layers",), axis_types=(AxisType.Auto,))
    tree = {
        "layers": {"kernel": jnp.round(8 * jax.random.normal(jax.random.key(0), (8, 32, 32)))},
        "out": jax.random.normal(jax.random.key(1), (32, 4)),
    }
    transform = BIG[name]()
    step = jax.jit(lambda s, p: transform.update(s, p, grads=p, step=jnp.int32(1)))
    state = transform.init(tree)
    wanted = step(state, tree).masks
    put = lambda x: jax.device_put(x, NamedSharding(mesh, P("layers") if x.ndim == 3 else P()))
    with jax.set_mesh(mesh):
        args = jax.tree.map(put, (state, tree))
        found, text = step(*args).masks, step.lower(*args).compile().as_text()
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    kernel = found["layers"]["kernel"]
    assert kernel.sharding.is_equivalent_to(args[1]["layers"]["kernel"].sharding, 3)
    program = collectives.read(text)
    moved = [collectives.total(own).bytes for own in program]
    # counts and thresholds of 9 leaves; in all of a pass less than the weights of one layer
    assert 0 < sum(moved) < 3 * 32 * 32


@pytest.mark.full
def test_layers_of_a_stack_that_are_scored_each_in_its_own_way():
    """What is not one function of all layers is computed of each."""
    times = lambda name: 1.0 + int(name.split("/")[1]) if "layers" in name else 1.0
    score = lambda params, **_: map_named(lambda name, w: times(name) * jnp.abs(w), params)
    factors = jnp.array([1.0, 2.0, 3.0]).reshape(3, 1, 1)
    weighted = {**SCAN, "layers": {**SCAN["layers"], "kernel": factors * SCAN["layers"]["kernel"]}}
    step = lambda t, p: t.update(t.init(p), p, grads=p, step=jnp.int32(1)).masks
    found, wanted = step(BIG["global"](score), SCAN), step(BIG["global"](), weighted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


# --- what is a stack ------------------------------------------------------------------------------


class Block(nn.Module):
    bias: bool = True

    @nn.compact
    def __call__(self, x, _):
        x = nn.LayerNorm()(x)
        x = nn.MultiHeadDotProductAttention(2, use_bias=self.bias)(x)
        return nn.Dense(4, use_bias=self.bias, name="up")(x), None


def scanned(axis=0, name=None, bias=True):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            stack = nn.scan(
                Block, variable_axes={"params": axis}, split_rngs={"params": True}, length=N
            )
            return nn.Dense(3)(stack(bias=bias, name=name)(x, None)[0])

    return jax.eval_shape(Net().init, jax.random.key(0), jnp.zeros((1, 2, 4)))


@pytest.mark.parametrize("name", [None, "layers", "body"])
@pytest.mark.parametrize("bias", [True, False])
def test_stacks_of_nn_scan_are_seen(name, bias):
    chosen = named_leaves(jp.kernels(scanned(0, name, bias)))
    names = [path for path, leaf in chosen if leaf is not None]
    own = ["key", "out", "query", "value"]
    attention = [f"MultiHeadDotProductAttention_0/{k}/kernel" for k in own]
    layers = [f"params/{name or 'ScanBlock_0'}/{i}/" for i in range(N)]
    inner = [layer + leaf for layer in layers for leaf in [*attention, "up/kernel"]]
    assert sorted(names) == sorted(["params/Dense_0/kernel", *inner])
    assert {leaf.shape for path, leaf in chosen if path.endswith("up/kernel") and leaf} <= {(4, 4)}


def test_an_axis_of_layers_that_is_said():
    params = scanned(axis=1, name="layers")
    prunable = jp.matching(stacked={"params/layers/*": 1})
    shapes = {path: leaf.shape for path, leaf in named_leaves(prunable(params)) if leaf is not None}
    assert shapes["params/layers/2/MultiHeadDotProductAttention_0/query/kernel"] == (4, 2, 2)
    assert shapes["params/layers/2/up/kernel"] == (4, 4)


@pytest.mark.parametrize(
    "tree",
    [
        {"layers": {"kernel": (3, 8, 8), "bias": (8,)}, "out": {"kernel": (8, 4)}},  # a window
        {"layers": {"kernel": (8, 2, 4), "bias": (2, 4)}, "out": {"kernel": (8, 4)}},  # heads
        {"layers": {"conv": {"kernel": (3, 8, 8)}}, "out": {"kernel": (8, 4)}},
        {"blocks": {"0": {"query": {"kernel": (8, 2, 4)}}}, "out": {"kernel": (5, 4)}},
        {"Conv_0": {"kernel": (3, 3, 3, 8)}, "Dense_0": {"kernel": (8, 4), "bias": (4,)}},
        {"ScanLSTM_0": {"hi": {"kernel": (8, 8), "bias": (8,)}, "ii": {"kernel": (8, 8)}}},
        {"w": (3, 4, 5), "v": (5, 2)},
        # equinox: a window of one, with inputs and without as many
        {"conv": {"weight": (8, 4, 1, 1), "bias": (8, 1, 1)}, "out": {"weight": (4, 8)}},
        {"layers": {"0": {"weight": (8, 4, 1), "bias": (8, 1)}}, "out": {"weight": (4, 8)}},
        {"ConvLocal_0": {"kernel": (5, 12, 16), "bias": (5, 16)}, "out": {"kernel": (8, 4)}},
        # a stack of seeds
        {"Dense_0": {"kernel": (3, 8, 8), "bias": (3, 8)}, "Dense_1": {"kernel": (3, 8, 4)}},
    ],
)
def test_what_is_no_stack(tree):
    is_shape = lambda x: isinstance(x, tuple)
    params = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), tree, is_leaf=is_shape)
    assert visible_stacks({path: leaf.shape for path, leaf in named_leaves(params)}) == {}
    assert jax.tree.structure(folded(jp.kernels(params))) == jax.tree.structure(jp.kernels(params))


def test_a_stack_that_is_taken_for_a_layer_is_warned_of():
    with pytest.warns(UserWarning, match=r"'layers/kernel' looks like a stack.*stacked="):
        jp.select(jp.magnitude({**SCAN}), jp.uniform, 0.5)
    one = {"Dense_0": {"kernel": jnp.ones((4, 3, 4))}, "out": jnp.ones((5, 2))}  # along axis 1
    with pytest.warns(UserWarning, match="'Dense_0/kernel' looks like a stack"):
        jp.select(one, jp.uniform, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jp.select(jp.matching(stacked={"Dense_0/*": 1})(one), jp.uniform, 0.5)


def test_stacks_of_stacks_and_axes_that_are_no_axes():
    params = {"deep": jnp.arange(48.0).reshape(2, 4, 2, 3), "out": jnp.ones((2, 2))}
    chosen = jp.matching(stacked={"deep": (0, 2)})(params)
    assert [path for path, _ in named_leaves(chosen)] == [*(f"deep/{i}" for i in range(4)), "out"]
    np.testing.assert_array_equal(chosen["deep"].layers[1], params["deep"][0, :, 1])
    np.testing.assert_array_equal(folded(chosen)["deep"], params["deep"])
    turned = jp.matching(stacked={"deep": (2, 0)})(params)  # the first axis that is named is outer
    np.testing.assert_array_equal(turned["deep"].layers[1], params["deep"][1, :, 0])
    np.testing.assert_array_equal(folded(turned)["deep"], params["deep"])
    with pytest.raises(ValueError, match=r"'out' has shape \(2, 2\).*stacked=2"):
        jp.matching(stacked={"out": 2})(params)
    with pytest.raises(ValueError, match="Each axis is one of these"):
        jp.matching(layouts={"out": jp.Layout(inputs=0, outputs=0)})(params)


def test_gates_of_layers_apply_to_their_stacks():
    logits = jp.gates.logits(jp.kernels(SCAN), axes=-2)
    assert [leaf.shape for leaf in jax.tree.leaves(logits)] == [(8, 1)] * 4
    gates = jax.tree.map(lambda s: jnp.arange(8.0).reshape(s.shape), logits)
    gated = jp.apply_masks(SCAN, gates)["layers"]["kernel"]
    np.testing.assert_array_equal(
        gated, SCAN["layers"]["kernel"] * jnp.arange(8.0).reshape(1, 8, 1)
    )


def test_a_layout_that_was_said_goes_there_and_back():
    w = jnp.arange(120.0).reshape(2, 3, 4, 5)
    layout = jp.Layout(inputs=(3, 0), outputs=2)
    chosen = jp.matching("w", layouts={"w": layout})({"w": w, "b": None})
    assert [path for path, leaf in named_leaves(chosen) if leaf is not None] == ["w"]
    (matrix,) = jax.tree.leaves(chosen)
    assert matrix.shape == (3, 10, 4)
    assert matrix[1, 2 * 2 + 1, 3] == w[1, 1, 3, 2]
    np.testing.assert_array_equal(folded(chosen)["w"], w)
    np.testing.assert_array_equal(split_like({"w": w, "b": None}, chosen)["w"].matrix, matrix)
    from_behind = jp.Layout(inputs=(-1, -4), outputs=-2)
    (same,) = jax.tree.leaves(jp.matching("w", layouts={"w": from_behind})({"w": w, "b": None}))
    np.testing.assert_array_equal(same, matrix)


def test_axes_of_a_layer_are_counted_from_either_end():
    assert axes_of((-1, 0), 3) == (2, 0) and axes_of(-2, 3) == (1,)
    assert matrix_shape(Layout(-2, -1), (3, 3, 8, 4)) == (3, 3, 8, 4)


# --- what else means inputs and outputs -----------------------------------------------------------

QUERY = {"query": {"kernel": jax.random.normal(jax.random.key(0), (8, 4, 2))}}


def test_gates_of_inputs_of_attention():
    out = {"out": {"kernel": jnp.ones((4, 2, 6))}}
    shapes = lambda axes: [
        x.shape for x in jax.tree.leaves(jp.gates.logits(out | QUERY, axes=axes))
    ]
    assert shapes(-2) == [(4, 2, 1), (8, 1, 1)]
    assert shapes(-1) == [(1, 1, 6), (1, 4, 2)]
    assert shapes(()) == [(1, 1, 1)] * 2 and shapes(None) == [(4, 2, 6), (8, 4, 2)]
    with pytest.raises(ValueError, match=r"gates.logits needs to know which axes of 'mix'"):
        jp.gates.logits({"mix": jnp.ones((4, 2, 6))}, axes=-2)


def test_a_random_direction_of_attention_has_a_filter_for_each_feature_of_each_head():
    d = jp.analysis.random_direction(jax.random.key(1), QUERY)["query"]["kernel"]
    norms = lambda w: jnp.sqrt(jnp.square(w).sum(0))
    np.testing.assert_allclose(norms(d), norms(QUERY["query"]["kernel"]), rtol=1e-5)
    scan = jp.analysis.random_direction(jax.random.key(1), SCAN)["layers"]["kernel"]
    norms = lambda w: jnp.sqrt(jnp.square(w).sum(1))
    np.testing.assert_allclose(norms(scan), norms(SCAN["layers"]["kernel"]), rtol=1e-5)


def test_compressing_attention_asks_for_the_axis_of_the_inputs():
    mask = jp.select(QUERY, jp.uniform, 0.5, jp.nm(2, 4))["query"]["kernel"]
    w = QUERY["query"]["kernel"]
    with pytest.raises(ValueError, match=r"\(8, 4, 2\) may have heads.*axis=0 for query"):
        jp.export.compress_nm(w, mask, 2, 4)
    small = jp.export.compress_nm(w, mask, 2, 4, axis=0)
    np.testing.assert_array_equal(jp.export.decompress_nm(small), jnp.where(mask, w, 0))


@pytest.mark.full
def test_complex_weights_are_compressed_and_come_back():
    w = jnp.arange(16.0).reshape(4, 4) * (1 - 2j)
    mask = jp.select({"w": jnp.abs(w)}, jp.uniform, 0.5, jp.nm(2, 4))["w"]
    back = jp.export.decompress_nm(jp.export.compress_nm(w, mask, 2, 4))
    assert back.dtype == w.dtype
    np.testing.assert_array_equal(back, jnp.where(mask, w, 0))


def test_the_report_says_what_was_left_out_and_why():
    params = {
        "body": {"kernel": jnp.ones((4, 4)), "bias": jnp.zeros(4)},
        "head": {"kernel": jnp.ones((4, 2))},
        "wte": jnp.ones((9, 4)),
    }
    prunable = jp.matching(exclude="head/*")
    masks = jp.select(jp.random(jax.random.key(0))(prunable(params)), jp.uniform, 0.5)
    report = jp.report(jp.apply_masks(params, masks), masks, prunable=prunable)
    note = "never pruned: 'head/kernel' (a kernel, not chosen); 'wte' (an embedding, by its name)."
    assert report.notes == (note,) and note[:40] in str(report)


@pytest.mark.full
def test_stacks_of_nnx():
    nnx = pytest.importorskip("flax.nnx")
    make = nnx.vmap(lambda key: nnx.Linear(4, 4, rngs=nnx.Rngs(key)))

    class Net(nnx.Module):
        def __init__(self):
            self.layers = make(jax.random.split(jax.random.key(0), N))
            self.head = nnx.Linear(4, 2, rngs=nnx.Rngs(1))

    state = nnx.state(Net(), nnx.Param)
    masks = jp.select(jp.magnitude(jp.kernels(state)), jp.uniform, 0.5)
    assert list(jp.at_init.empty_layers(masks)) == [
        "head/kernel",
        *(f"layers/{i}/kernel" for i in range(N)),
    ]
    pruned = jp.apply_masks(state, masks)
    assert jax.tree.structure(pruned) == jax.tree.structure(state)
