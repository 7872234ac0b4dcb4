"""Masks at work: on any pytree, out of any state, counted and compared."""

import dataclasses
import warnings
from typing import NamedTuple

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.core import freeze

import jaxprune as jp
from jaxprune.masks import all_kept, like
from jaxprune.trees import fitted, named_leaves

KERNEL = jnp.arange(1.0, 9).reshape(2, 4)
BIAS = jnp.ones(4)
MASK = jnp.array([[True, False, True, False], [False, True, False, True]])
PRUNED = [[1, 0, 3, 0], [0, 6, 0, 8]]


# --- any pytree ----------------------------------------------------------------------------------


class Pair(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


@flax.struct.dataclass
class FlaxPair:
    kernel: jax.Array
    bias: jax.Array


@chex.dataclass
class ChexPair:
    kernel: jax.Array
    bias: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class RegisteredPair:
    kernel: jax.Array
    bias: jax.Array


TREES = {
    "dict": lambda k, b: {"kernel": k, "bias": b},
    "FrozenDict": lambda k, b: freeze({"kernel": k, "bias": b}),
    "tuple": lambda k, b: (k, b),
    "list": lambda k, b: [k, b],
    "NamedTuple": Pair,
    "flax.struct": lambda k, b: FlaxPair(kernel=k, bias=b),
    "chex.dataclass": lambda k, b: ChexPair(kernel=k, bias=b),
    "dataclass": RegisteredPair,
    "linen variables": lambda k, b: {"params": {"Dense_0": {"kernel": k, "bias": b}}},
    "with a hole": lambda k, b: {"kernel": k, "bias": b, "none": None},
    "nested": lambda k, b: [Pair({"w": k}, (b, None))],
}


def same(a, b):
    """Whether two trees are equal, None for None."""
    leaves_a, leaves_b = jax.tree.leaves(a), jax.tree.leaves(b)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        bool((x == y).all()) for x, y in zip(leaves_a, leaves_b, strict=True)
    )


@pytest.mark.parametrize("kind", TREES)
def test_apply_masks_to_any_pytree(kind):
    make = TREES[kind]
    pruned = jp.apply_masks(make(KERNEL, BIAS), make(MASK, None))
    assert same(pruned, make(jnp.array(PRUNED, jnp.float32), BIAS))


@pytest.mark.parametrize("kind", [k for k in TREES if k not in ("dict", "list", "linen variables")])
def test_masks_of_any_pytree_through_an_optimizer(kind):
    params = TREES[kind](KERNEL, BIAS)
    tx = jp.sparsify(optax.sgd(0.5), jp.prune(jp.magnitude, jp.uniform, 0.75, prunable=jp.kernels))
    state = tx.init(params)
    updates, state = jax.jit(tx.update)(params, state, params)
    masks = jp.get_masks(state)
    top = jnp.array([[False] * 4, [False, False, True, True]])
    assert same(masks, TREES[kind](top, None))
    # half of each gradient, which is the weight: 7, 8 -> 3.5, 4; the biases are not pruned
    expected = TREES[kind](jnp.where(top, KERNEL / 2, 0), BIAS / 2)
    assert same(optax.apply_updates(params, updates), expected)


def test_a_bare_array():
    assert jp.apply_masks(KERNEL, MASK).tolist() == PRUNED


def test_empty_and_scalar_leaves():
    params = {"empty": jnp.ones((0, 3)), "scalar": jnp.float32(3), "w": KERNEL}
    masks = {"empty": jnp.ones((0, 3), bool), "scalar": jnp.array(False), "w": None}
    pruned = jp.apply_masks(params, masks)
    assert pruned["empty"].shape == (0, 3) and float(pruned["scalar"]) == 0
    assert pruned["w"] is KERNEL


def test_python_numbers_are_params_that_are_never_pruned():
    assert jp.apply_masks({"w": KERNEL, "scale": 2.5}, {"w": MASK, "scale": None})["scale"] == 2.5


def test_holes_of_optax_masked():
    params = {"w": KERNEL, "b": BIAS}
    for hole in (None, optax.MaskedNode()):
        assert same(jp.apply_masks(params, {"w": MASK, "b": hole})["b"], BIAS)


def test_masks_of_numpy():
    assert jp.apply_masks({"w": KERNEL}, {"w": np.asarray(MASK)})["w"].tolist() == PRUNED
    assert jp.apply_masks({"w": np.asarray(KERNEL)}, {"w": MASK})["w"].tolist() == PRUNED


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(2, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(4, 2, rngs=rngs)])


@pytest.fixture(scope="module")
def trained():
    """A network of nnx and its optimizer, after one update."""
    model = Net(nnx.Rngs(0))
    tx = jp.sparsify(optax.adam(0.1), jp.prune(jp.magnitude, jp.uniform, 0.5))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
    return model, optimizer


@pytest.mark.full
def test_nnx_state_and_optimizer(trained):
    model, optimizer = trained
    params = nnx.state(model, nnx.Param)
    for source in (optimizer, optimizer.opt_state):
        masks = jp.get_masks(source)
        named = {name: mask for name, mask in named_leaves(masks) if mask is not None}
        assert sorted(named) == ["first/kernel", "layers/0/kernel"]
        assert float(jp.sparsity(masks)) == 0.5
        pruned = jp.apply_masks(params, masks)
        assert isinstance(pruned, nnx.State)
        assert same(nnx.to_pure_dict(pruned), nnx.to_pure_dict(params))  # zero they are already
        assert float(jp.overlap(masks, jp.get_masks(optimizer))) == 1
    nnx.update(model, pruned)
    assert int((model.first.kernel[...] == 0).sum()) == 4


def test_linen_variables_of_a_network():
    variables = nn.Dense(4).init(jax.random.key(0), jnp.ones((1, 2)))
    masks = jp.select(jp.magnitude(jp.kernels(variables)), jp.uniform, 0.5)
    pruned = jp.apply_masks(variables, masks)["params"]
    assert int((pruned["kernel"] == 0).sum()) == 4
    assert pruned["bias"] is variables["params"]["bias"]


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.int32])
def test_a_mask_gives_exact_zeros_and_keeps_the_dtype(dtype):
    pruned = jp.apply_masks({"w": KERNEL.astype(dtype)}, {"w": MASK})["w"]
    assert pruned.dtype == dtype and pruned.tolist() == PRUNED


def test_a_mask_makes_zeros_of_infinity_and_nan():
    w = jnp.array([jnp.inf, -jnp.inf, jnp.nan, 1.0])
    assert jp.apply_masks({"w": w}, {"w": jnp.zeros(4, bool)})["w"].tolist() == [0, 0, 0, 0]
    assert not jnp.signbit(jp.apply_masks(-w, jnp.zeros(4, bool))).any()


def test_a_gate_multiplies():
    gate = jnp.array([[0.5, 0.0, 1.0, 2.0]] * 2)
    assert jp.apply_masks({"w": KERNEL}, {"w": gate})["w"].tolist() == [
        [0.5, 0, 3, 8], [2.5, 0, 7, 16]
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", [bool, jnp.int32])
def test_a_gate_multiplies_only_floats(dtype):
    """Else a gate of 0.3 is True of a bool, and 0 of an integer; and the two may be swapped."""
    with pytest.raises(TypeError, match=r"gate of 'kernel' is float32.*apply_masks\(params, masks"):
        jp.apply_masks({"kernel": jnp.ones(2, dtype)}, {"kernel": jnp.array([0.3, 1.0])})


def test_overlap_of_what_is_not_bool():
    params = {"kernel": jnp.ones(2)}
    for pair in ((params, params), ({"kernel": jnp.ones(2, bool)}, params)):
        with pytest.raises(TypeError, match=r"overlap compares masks .*'kernel' is float32"):
            jp.overlap(*pair)


@pytest.mark.parametrize("shape", [(2, 1), (1, 4), (1, 1)])
def test_a_gate_may_broadcast(shape):
    gate = 2 * jnp.ones(shape, jnp.bfloat16)
    gated = jp.apply_masks({"w": KERNEL}, {"w": gate})["w"]
    assert gated.dtype == jnp.float32
    np.testing.assert_array_equal(gated, 2 * KERNEL)


def test_a_gate_of_lower_rank_may_broadcast():
    with jax.numpy_rank_promotion("allow"):
        for gate in (jnp.full(4, 2.0), jnp.float32(2)):
            np.testing.assert_array_equal(jp.apply_masks(KERNEL, gate), 2 * KERNEL)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3), (2, 2, 4), (4, 2)])
def test_a_gate_that_does_not_broadcast(shape):
    with pytest.raises(ValueError, match=r"'layer/w' has shape") as error:
        jp.apply_masks({"layer": {"w": KERNEL}}, {"layer": {"w": jnp.ones(shape)}})
    assert f"has shape {shape}, wanted (2, 4)" in str(error.value)


@pytest.mark.parametrize("shape", [(1, 4), (2, 1), (4, 2), (3, 2, 4), ()])
def test_a_mask_must_have_the_shape_of_its_parameter(shape):
    with pytest.raises(ValueError, match="'w' has shape") as error:
        jp.apply_masks({"w": KERNEL}, {"w": jnp.ones(shape, bool)})
    assert f"has shape {shape}, wanted (2, 4)" in str(error.value)
    assert "vmap over both" in str(error.value)


def test_masks_are_matched_by_keys_not_by_text():
    """Both leaves read 'a/w'."""
    w = jnp.arange(1.0, 5).reshape(2, 2)
    params = {"a/w": w, "a": {"w": -w}}
    masks = {"a/w": jnp.zeros((2, 2), bool), "a": {"w": jnp.ones((2, 2), bool)}}
    pruned = jp.apply_masks(params, masks)
    assert not pruned["a/w"].any() and pruned["a"]["w"].tolist() == (-w).tolist()
    assert same(like(masks, params), masks)
    assert float(jp.overlap(masks, masks)) == 1
    assert same(jp.export.unpack(jp.export.pack(masks), params), masks)
    gates = {"a/w": jnp.zeros((1, 1)), "a": {"w": None}}
    assert [gate is None for *_, gate in fitted("gates", gates, params)] == [True, False]
    state = optax.adam(0.1).init(params)
    state = (state[0]._replace(nu={"a/w": jnp.ones((2, 2)), "a": {"w": 2 * w}}), state[1])
    scores = jp.fisher(params, opt_state=state)
    assert scores["a/w"].tolist() == (w * w).tolist()
    assert scores["a"]["w"].tolist() == (2 * w * w * w).tolist()
    lent = jp.allocation.like({"a/w": 10 * w, "a": {"w": w}})(jp.magnitude(params), 0.5)
    assert (int(lent["a/w"]), int(lent["a"]["w"])) == (0, 4)
    halves = jp.select(jp.magnitude(params), jp.per_layer({"a/w": 0.25}), 0.5)
    rows = jp.report(jp.apply_masks(params, halves), halves).layers
    assert {row.path: row.kept for row in rows} == {"a/w": 3, "a\\/w": 2}


def test_masks_that_lack_a_twin_do_not_mask_the_other():
    params = {"a/w": KERNEL, "a": {"w": KERNEL}}
    with pytest.raises(ValueError, match="missing: 'a/w'"):
        jp.apply_masks(params, {"a/w": MASK})


def test_gradients_pass_through_masks():
    slope = jax.grad(lambda w: jp.apply_masks(w, MASK).sum())(KERNEL)
    np.testing.assert_array_equal(slope, MASK)


# --- trees that do not fit -----------------------------------------------------------------------


@pytest.mark.parametrize("f", [jp.apply_masks, lambda params, masks: like(masks, params)])
def test_masks_of_other_params_name_what_is_missing_on_both_sides(f):
    params = {"body": {"w": KERNEL}, "head": {"w": KERNEL}}
    with pytest.raises(ValueError, match="these masks must be like the params") as error:
        f(params, {"body": {"w": MASK}, "tail": {"w": MASK}})
    assert "missing: 'head/w'" in str(error.value)
    assert "not in the params: 'tail/w'" in str(error.value)


def test_masks_with_nothing_in_place_of_a_leaf():
    with pytest.raises(ValueError, match="missing: 'b'") as error:
        jp.apply_masks({"w": KERNEL, "b": BIAS}, {"w": MASK})
    assert "with None (not nothing) where a leaf is never pruned" in str(error.value)


def test_masks_with_a_leaf_too_many():
    with pytest.raises(ValueError, match="not in the params: 'v'"):
        jp.apply_masks({"w": KERNEL}, {"w": MASK, "v": MASK})
    # a hole too many is no harm: masks of all variables on the trained ones
    assert jp.apply_masks({"w": KERNEL}, {"w": MASK, "v": None})["w"].tolist() == PRUNED


def test_masks_find_their_params_by_path_not_by_position():
    masks = {"params": freeze({"b": None, "a": MASK})}
    pruned = jp.apply_masks({"params": {"a": KERNEL, "b": KERNEL}}, masks)
    assert pruned["params"]["a"].tolist() == PRUNED and pruned["params"]["b"] is KERNEL


# --- get_masks -----------------------------------------------------------------------------------

PARAMS = {"kernel": KERNEL, "bias": BIAS}
LABELS = {"kernel": "sparse", "bias": "dense"}


def sparse(lr=0.1):
    return jp.sparsify(optax.adam(lr), jp.fixed({"kernel": MASK, "bias": None}))


WRAPPERS = {
    "bare": sparse,
    "chain": lambda: optax.chain(optax.clip(1.0), sparse()),
    "chain of chains": lambda: optax.chain(optax.chain(optax.clip(1.0), optax.chain(sparse()))),
    "named_chain": lambda: optax.named_chain(("clip", optax.clip(1.0)), ("sparse", sparse())),
    "masked": lambda: optax.masked(sparse(), {"kernel": True, "bias": False}),
    "partition": lambda: optax.partition({"sparse": sparse(), "dense": optax.sgd(0.1)}, LABELS),
    "MultiSteps": lambda: optax.MultiSteps(sparse(), 1),
    "inject_hyperparams": lambda: optax.inject_hyperparams(sparse)(lr=0.1),
    "apply_if_finite": lambda: optax.apply_if_finite(sparse(), 3),
    "multi transform of a chain": lambda: optax.partition(
        {"sparse": optax.chain(optax.clip(1.0), sparse()), "dense": optax.sgd(0.1)}, LABELS
    ),
    "track_masks": lambda: optax.chain(
        jp.track_masks(jp.fixed({"kernel": MASK, "bias": None})), optax.adam(0.1)
    ),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_get_masks_through(name):
    masks = jp.get_masks(WRAPPERS[name]().init(PARAMS))
    assert masks["kernel"].tolist() == MASK.tolist()
    assert masks["bias"] is None and set(masks) == {"kernel", "bias"}


def restored(state, folder):
    """`state` saved and read back without a template: dicts and lists in place of its classes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # orbax's own
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder / "state", state)
            checkpointer.wait_until_finished()
            return checkpointer.restore(folder / "state")


@pytest.mark.parametrize("name", ["bare", "chain", "masked", "partition", "track_masks"])
def test_get_masks_of_a_bare_orbax_restore(name, tmp_path):
    bare = restored(WRAPPERS[name]().init(PARAMS), tmp_path)
    assert isinstance(bare, (dict, list))
    masks = jp.get_masks(bare)
    assert masks["kernel"].tolist() == MASK.tolist() and masks["bias"] is None
    assert jp.apply_masks(PARAMS, masks)["kernel"].tolist() == PRUNED


def test_get_masks_of_a_bare_orbax_restore_of_nnx(trained, tmp_path):
    model, optimizer = trained
    masks = jp.get_masks(restored(nnx.state(optimizer), tmp_path))
    assert float(jp.sparsity(masks)) == 0.5
    assert float(jp.overlap(jp.get_masks(optimizer), masks)) == 1
    params = nnx.state(model, nnx.Param)
    pruned = jp.apply_masks(params, masks)
    assert same(nnx.to_pure_dict(pruned), nnx.to_pure_dict(params))  # zero they are already


def test_get_masks_finds_those_that_a_fixed_transform_holds():
    masks = {"kernel": MASK, "bias": None}
    assert same(jp.get_masks(jp.sparsify(optax.sgd(0.1), jp.fixed(masks)).init(PARAMS)), masks)


@pytest.mark.parametrize(
    "state",
    [optax.adam(0.1).init(PARAMS), (), None, {}, {"mask": MASK}, optax.EmptyState(), MASK],
)
def test_get_masks_of_a_state_without_any(state):
    with pytest.raises(ValueError, match="this optimizer state has no masks") as error:
        jp.get_masks(state)
    assert "jaxprune.sparsify(optimizer, transform)" in str(error.value)
    assert f"got a state of type {type(state).__name__}" in str(error.value)


def test_get_masks_of_two_in_a_chain_names_both_places():
    transform = jp.fixed({"kernel": MASK, "bias": None})
    tx = optax.chain(jp.track_masks(transform), optax.clip(1.0), sparse())
    with pytest.raises(ValueError, match="has 2 trees of masks, at '0' and '2'"):
        jp.get_masks(tx.init(PARAMS))


def test_get_masks_of_two_in_a_partition_names_both_places():
    tx = optax.partition(
        {
            "sparse": sparse(),
            "dense": jp.sparsify(
                optax.sgd(0.1), jp.prune(jp.magnitude, jp.uniform, 0.5, prunable=jp.matching("*"))
            ),
        },
        LABELS,
    )
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match="has 2 trees of masks") as error:
        jp.get_masks(state)
    assert "'inner_states/dense/inner_state' and 'inner_states/sparse/inner_state'" in str(
        error.value
    )
    own = jp.get_masks(state.inner_states["dense"])
    assert own["kernel"] is None and own["bias"].shape == (4,)


# --- sparsity ------------------------------------------------------------------------------------


def test_sparsity_counts_false_over_all_masks():
    masks = {"a": MASK, "b": jnp.zeros((2,), bool), "c": None, "empty": jnp.ones((0, 4), bool)}
    value = jp.sparsity(masks)
    assert value.dtype == jnp.float32 and value.shape == ()
    assert float(value) == pytest.approx(6 / 10)


def test_sparsity_of_gates_counts_exact_zeros():
    gate = jnp.array([0.0, 1e-30, -1.0, 0.5])
    assert float(jp.sparsity({"a": gate, "b": None})) == 0.25


def test_sparsity_does_not_lose_count_in_a_large_layer():
    masks = {"a": np.arange(2**24 + 2) > 0}  # float32 counts to 2**24
    assert float(jp.sparsity(masks)) == pytest.approx(1 / (2**24 + 2), rel=1e-6)


def test_sparsity_under_vmap_is_one_a_seed():
    masks = {"a": jnp.array([[True, False], [True, True], [False, False]]), "b": None}
    assert jax.vmap(jp.sparsity)(masks).tolist() == [0.5, 0.0, 1.0]


@pytest.mark.parametrize("masks", [{}, {"a": None}, None])
def test_sparsity_of_no_masks(masks):
    with pytest.raises(ValueError, match="there are no masks: every leaf is None"):
        jp.sparsity(masks)


# --- overlap -------------------------------------------------------------------------------------


def masks_of(*rows):
    return {"a": jnp.array(rows[0], bool), "b": jnp.array(rows[1], bool), "c": None}


def test_overlap_is_intersection_over_union():
    first = masks_of([1, 1, 0, 0], [1, 0])
    second = masks_of([1, 0, 1, 0], [1, 1])
    assert float(jp.overlap(first, second)) == pytest.approx(2 / 5)  # 1 + 1 of 3 + 2
    assert float(jp.overlap(second, first)) == pytest.approx(2 / 5)
    assert float(jp.overlap(first, first)) == 1
    assert jp.overlap(first, second).dtype == jnp.float32


def test_overlap_of_disjoint_and_of_empty():
    first, second = masks_of([1, 1, 0, 0], [1, 0]), masks_of([0, 0, 1, 0], [0, 1])
    nothing = masks_of([0, 0, 0, 0], [0, 0])
    assert float(jp.overlap(first, second)) == 0
    assert float(jp.overlap(first, nothing)) == 0
    assert float(jp.overlap(nothing, nothing)) == 1


def test_overlap_of_random_masks_is_what_chance_gives():
    draw = lambda seed: jp.select(
        jp.random(jax.random.key(seed))({"a": jnp.zeros((200, 300))}), jp.uniform, 0.5
    )
    # two halves share a quarter of all, and cover three quarters
    assert float(jp.overlap(draw(0), draw(1))) == pytest.approx(1 / 3, abs=0.01)


def test_overlap_under_vmap():
    masks = {"a": jnp.array([[True, False], [True, True]])}
    pairwise = jax.vmap(jax.vmap(jp.overlap, (None, 0)), (0, None))(masks, masks)
    assert pairwise.tolist() == [[1.0, 0.5], [0.5, 1.0]]


@pytest.mark.full
def test_overlap_does_not_lose_count_in_a_large_layer():
    whole = {"a": np.ones(2**25, bool)}
    half = {"a": np.arange(2**25) % 2 == 0}
    assert float(jp.overlap(whole, half)) == 0.5


@pytest.mark.parametrize(
    ("other", "fragment"),
    [
        ({"a": MASK}, "missing: 'b'"),
        ({"a": MASK, "b": MASK, "c": MASK}, "not in the params: 'c'"),
        ({"a": MASK, "b": MASK[:1]}, "'b' has shape (1, 4)"),
    ],
)
def test_overlap_of_other_trees_names_the_leaf(other, fragment):
    with pytest.raises(ValueError) as error:
        jp.overlap({"a": MASK, "b": MASK}, other)
    assert fragment in str(error.value)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"a": MASK, "b": MASK}, {"a": MASK, "b": None}),
        ({"a": MASK, "b": None}, {"a": MASK, "b": MASK}),
        ({"a": MASK, "b": None}, {"a": None, "b": MASK}),  # as many masks, of other leaves
    ],
)
def test_overlap_of_masks_with_other_holes_names_the_leaf(first, second):
    with pytest.raises(ValueError, match=r"'[ab]'"):
        jp.overlap(first, second)


def test_overlap_of_no_masks():
    with pytest.raises(ValueError, match="there are no masks"):
        jp.overlap({"a": None}, {"a": None})


def test_masks_that_keep_all_need_shapes_only(params):
    masks = all_kept(jp.kernels(params))
    shapes = all_kept(jax.eval_shape(lambda: jp.kernels(params)))
    jax.tree.map(np.testing.assert_array_equal, masks, shapes)
    assert masks["Dense_0"]["bias"] is None
    assert masks["Dense_0"]["kernel"].dtype == bool and masks["Dense_0"]["kernel"].all()


@pytest.mark.parametrize(
    "state",
    [
        optax.adam(0.1).init(PARAMS),
        optax.sgd(0.1, 0.9).init(PARAMS),  # all of it is floats
        optax.sgd(0.1).init(PARAMS),  # nothing is in it
        sparse().init(PARAMS),
        sparse().init(PARAMS).mask_state,
        {"step": jnp.int32(3), "params": PARAMS},
        {"kernel": 0.5},
    ],
    ids=["adam", "momentum", "empty", "sparsify", "mask_state", "train state", "a number"],
)
def test_sparsity_of_a_state_is_refused(state):
    with pytest.raises(
        TypeError, match=r"sparsity takes masks.*sparsity\(get_masks\(opt_state\)\)"
    ):
        jp.sparsity(state)


def test_sparsity_of_params_and_their_multipliers():
    """`gates.multipliers()` are params, learned beside the gates: a NamedTuple, but no state."""
    learned = {"gates": jnp.array([0.0, 1.0]), "prices": jp.gates.multipliers()}
    assert float(jp.sparsity(learned)) == 0.75
    masks = {"gates": jnp.array([True, False]), "prices": jp.gates.Multipliers(None, None)}
    assert float(jp.sparsity(masks)) == 0.5


def test_sparsity_of_params_is_that_of_their_zeros():
    assert float(jp.sparsity({"kernel": jnp.array([0.0, 1.0, -2.0, 0.0]), "bias": None})) == 0.5


# --- labels that are a prefix of the params -------------------------------------------------------

LAYERS = {name: {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)} for name in ("body", "head")}
BY_PREFIX = {
    "partition": lambda tx: optax.partition(
        {"train": tx, "freeze": optax.set_to_zero()}, {"body": "freeze", "head": "train"}
    ),
    "masked": lambda tx: optax.masked(tx, {"body": False, "head": True}),
}


@pytest.mark.parametrize("name", BY_PREFIX)
def test_masks_under_labels_that_are_a_prefix(name, tmp_path):
    tx = BY_PREFIX[name](jp.sparsify(optax.sgd(0.1), jp.prune(jp.magnitude, jp.uniform, 0.5)))
    updates, state = tx.update(LAYERS, tx.init(LAYERS), LAYERS)
    params = jp.apply_masks(optax.apply_updates(LAYERS, updates), jp.get_masks(state))
    for masks in jp.get_masks(state), jp.get_masks(restored(state, tmp_path)):
        pruned = jp.apply_masks(params, masks)
        assert int((pruned["head"]["kernel"] == 0).sum()) == 8
        np.testing.assert_array_equal(pruned["body"]["kernel"], params["body"]["kernel"])
        report = jp.report(pruned, masks)
        assert report.prunable.kept == 8 and report.never_pruned.total == 4 + 20
        assert float(jp.sparsity(masks)) == 0.5
        assert list(jp.at_init.empty_layers(masks)) == ["head/kernel"]


def test_a_hole_stands_for_what_is_below_it_and_for_nothing_else():
    with pytest.raises(ValueError, match="missing: 'head/bias', 'head/kernel'"):
        jp.apply_masks(LAYERS, {"body": None})
    with pytest.raises(ValueError, match="these masks must be like the params"):
        jp.apply_masks(LAYERS, None)
