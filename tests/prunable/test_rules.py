"""Leaves by name: how paths read, what a rule matches, what is prunable."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.prunable.rules import check_all_match, matches
from jaxprune.trees import named_leaves, quoted

W = jnp.ones((2, 3))


class Layer(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


def chosen(tree):
    return [name for name, leaf in named_leaves(tree) if leaf is not None]


# --- names ---------------------------------------------------------------------------------------


def test_names_of_dicts_tuples_and_named_tuples():
    tree = {"net": [Layer(W, jnp.ones(3)), (W,)], "none": None}
    names = [name for name, _ in named_leaves(tree)]
    assert names == ["net/0/kernel", "net/0/bias", "net/1/0", "none"]


def test_none_is_a_leaf():
    assert named_leaves({"a": None, "b": 1}) == [("a", None), ("b", 1)]


def test_a_bare_array_has_the_empty_name():
    assert [name for name, _ in named_leaves(W)] == [""]


def test_names_of_nnx_leave_out_value():
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.stem = nnx.Linear(2, 3, rngs=rngs)
            self.layers = nnx.List([nnx.Linear(3, 2, rngs=rngs)])

    state = nnx.state(nnx.eval_shape(lambda: Net(nnx.Rngs(0))), nnx.Param)
    assert [name for name, _ in named_leaves(state)] == [
        "layers/0/bias",
        "layers/0/kernel",
        "stem/bias",
        "stem/kernel",
    ]


class Attention(NamedTuple):
    query: jax.Array
    value: jax.Array


def test_a_leaf_called_value_has_its_name_in_any_container():
    nnx = pytest.importorskip("flax.nnx")
    tree = {"attn": {"query": W, "value": W}, "heads": Attention(W, W), "value": W}
    names = ["attn/query", "attn/value", "heads/query", "heads/value", "value"]
    assert [name for name, _ in named_leaves(tree)] == names
    assert chosen(jp.matching("*/value")(tree)) == ["attn/value", "heads/value"]

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.value = nnx.Linear(2, 3, rngs=rngs, use_bias=False)
            self.scaled = nnx.Param({"value": W})

    state = nnx.state(Net(nnx.Rngs(0)), nnx.Param)
    assert [name for name, _ in named_leaves(state)] == ["scaled/value", "value/kernel"]


def test_boxes_of_linen_are_left_out_of_names():
    linen = pytest.importorskip("flax.linen")
    boxed = {"kernel": linen.Partitioned(W, ("in", None))}
    assert [name for name, _ in named_leaves(boxed)] == ["kernel"]


def test_a_table_that_orbax_restored_from_nnx_is_still_an_embedding():
    assert chosen(jp.kernels({"embedding": {"value": W}, "w": {"value": W}})) == ["w/value"]


def test_names_that_are_alike_as_text_are_told_apart():
    tree = {"a/w": W, "a": {"w": W}, "b/w": W}
    assert [name for name, _ in named_leaves(tree)] == ["a/w", "a\\/w", "b\\/w"]
    assert jp.matching("a\\/w")(tree) == {"a/w": W, "a": {"w": None}, "b/w": None}
    # without the twin a name reads as in Haiku
    assert chosen({"mlp/~/linear_0": {"w": W}}) == ["mlp/~/linear_0/w"]


# --- rules ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "name", "expected"),
    [
        ("Dense_0/kernel", "Dense_0/kernel", True),
        ("Dense_0/kernel", "Dense_0/kernel_2", False),
        ("Dense_0", "Dense_0/kernel", False),
        ("kernel", "Dense_0/kernel", False),
        ("*/kernel", "Dense_0/kernel", True),
        ("*/kernel", "a/b/c/kernel", True),  # `*` also crosses `/`
        ("*/kernel", "kernel", False),
        ("Dense_[01]/*", "Dense_1/kernel", True),
        ("Dense_[01]/*", "Dense_2/kernel", False),
        ("Dense_?/kernel", "Dense_7/kernel", True),
        ("dense_0/*", "Dense_0/kernel", False),  # case counts
        ("w[0]", "w[0]", True),  # an exact name that would be a glob
        ("w[0]", "w0", True),
        (re.compile("Dense"), "body/Dense_0/kernel", True),  # searched, not matched whole
        (re.compile("^Dense"), "body/Dense_0/kernel", False),
        (re.compile(r"_\d+/kernel$"), "Dense_12/kernel", True),
        (lambda name, leaf: leaf.ndim == 2, "whatever", True),
        (lambda name, leaf: name.startswith("x"), "whatever", False),
        (lambda name, leaf: np.bool_(True), "whatever", True),
    ],
)
def test_matches(rule, name, expected):
    assert matches(rule, name, W) is expected


@pytest.mark.parametrize("rule", [5, None, 0.5, ("a", "b")])
def test_no_rule_is_a_type_error(rule):
    with pytest.raises(TypeError, match="a rule is a string") as error:
        matches(rule, "a", W)
    assert f"got {rule!r}" in str(error.value)


def test_every_rule_must_match_a_leaf_that_is_not_none():
    tree = {"a": W, "b": None}
    check_all_match(["a", re.compile("a")], tree)
    with pytest.raises(ValueError, match="the rule 'b' matches no leaf") as error:
        check_all_match(["a", "b"], tree)
    assert "The leaves are: 'a'." in str(error.value)


def test_quoted_names_at_most_twelve():
    leaves = [(f"l{i}", W) for i in range(15)]
    assert quoted(leaves[:2]) == "'l0', 'l1'"
    assert quoted(leaves).endswith("'l11', and 3 more") and "l12" not in quoted(leaves)
    assert quoted([]) == "(none)"


# --- kernels -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "Dense_0/kernel",
        "Conv_0/kernel",
        "MultiHeadDotProductAttention_0/query/kernel",
        "w",
        "layers/0/weight",
        "linear/w",
        "embed_out/kernel",
        "Block_0/LayerNorm_like/kernel",
        "net/lora_a",
    ],
)
def test_kernels_chooses(path):
    assert chosen(jp.kernels(nested(path, W))) == [path]


@pytest.mark.parametrize(
    "path",
    [
        "Dense_0/bias",
        "attention/query/bias",
        "linear/b",
        "rnn/bias_hh",
        "LayerNorm_0/scale",
        "BatchNorm_0/gamma",
        "BatchNorm_0/beta",
        "BatchNorm_0/mean",
        "BatchNorm_0/var",
        "batch_stats/BatchNorm_0/moving",
        "Embed_0/embedding",
        "pos_embed",
        "cls",
        "cls_token",
        "norm/weight",
        "bn1/weight",
        "layers/0/LayerNorm_3/weight",
        "tok_embeddings/weight",
        "embed/w",
        "optimizer/count",
    ],
)
def test_kernels_leaves_out_although_of_rank_two(path):
    # nn.scan and vmap stack biases and scales to rank 2 and more
    assert chosen(jp.kernels(nested(path, W))) == []


@pytest.mark.parametrize(
    "path",
    [
        "pos_emb", "wte", "wpe", "wte/weight", "pos_embedding", "position", "mask_token",
        "class_token", "register_tokens", "ln_1/weight", "ln_f/g", "bn_a/weight", "b",
        "bn/running_mean", "bn/moving_variance", "causal_mask", "freqs_cis",
    ],
)  # fmt: skip
def test_kernels_leaves_out_embeddings_tokens_and_norms_by_other_names(path):
    assert chosen(jp.kernels(nested(path, W))) == []


@pytest.mark.parametrize(
    ("params", "wanted"),
    [
        ({"a": W, "b": W}, ["a", "b"]),
        ({"a": W, "b": W, "c": W}, ["a", "b", "c"]),
        ({"lora": {"a": W, "b": W}}, ["lora/a", "lora/b"]),
        ({"lora": {"A": W, "B": W}}, ["lora/A", "lora/B"]),
        ({"w": jnp.ones((2, 3, 3)), "b": W}, ["w"]),  # a stack of biases
        ({"w": W, "b": jnp.ones((1, 3))}, ["w"]),
        ({"w": W, "b": W}, ["w"]),
        ({"w": W, "a": W, "b": W}, ["a", "w"]),
        ({"w": W, "a": jnp.ones(3), "b": W}, ["w"]),
        # beside the matrix that it adapts, in either order
        ({"w": W, "a": jnp.ones((2, 1)), "b": jnp.ones((1, 3))}, ["a", "b", "w"]),
        ({"weight": W, "A": jnp.ones((1, 3)), "B": jnp.ones((2, 1))}, ["A", "B", "weight"]),
    ],
)
def test_a_leaf_called_b_is_a_matrix_in_a_product_with_a(params, wanted):
    assert chosen(jp.kernels(params)) == wanted


@pytest.mark.parametrize(
    "leaf",
    [
        jnp.ones(3),
        jnp.float32(1),
        jnp.ones((2, 2), jnp.int32),
        jnp.ones((2, 2), bool),
        jnp.ones((2, 2), jnp.complex64),
        jnp.ones((0, 3)),
        2.5,
    ],
)
def test_kernels_leaves_out_by_shape_and_dtype(leaf):
    assert chosen(jp.kernels({"kernel": leaf})) == []


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_kernels_chooses_every_float(dtype):
    assert chosen(jp.kernels({"kernel": jnp.ones((2, 2), dtype)})) == ["kernel"]


def test_kernels_keeps_the_tree_and_the_leaves():
    params = {"a": Layer(W, jnp.ones(3)), "b": None}
    only = jp.kernels(params)
    assert isinstance(only["a"], Layer) and only["a"].kernel is W
    assert only["a"].bias is None and only["b"] is None


def test_kernels_reads_shapes_only():
    struct = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    assert jp.kernels({"kernel": struct, "bias": struct}) == {"kernel": struct, "bias": None}


def test_kernels_of_a_linen_network_stacked_by_scan():
    nn = pytest.importorskip("flax.linen")

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.LayerNorm()(nn.Dense(4)(x)), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, ids):
            x = nn.Embed(5, 4)(ids)
            stack = nn.scan(
                Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
            )
            x, _ = stack()(x, None)
            return nn.BatchNorm(use_running_average=True)(nn.MultiHeadDotProductAttention(2)(x))

    variables = jax.eval_shape(Net().init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    assert chosen(jp.kernels(variables)) == [
        "params/MultiHeadDotProductAttention_0/key/kernel",
        "params/MultiHeadDotProductAttention_0/out/kernel",
        "params/MultiHeadDotProductAttention_0/query/kernel",
        "params/MultiHeadDotProductAttention_0/value/kernel",
        *(f"params/ScanBlock_0/{i}/Dense_0/kernel" for i in range(3)),
    ]


# --- matching ------------------------------------------------------------------------------------

TREE = {
    "body": {"kernel": W, "bias": jnp.ones(3)},
    "embed": {"embedding": W},
    "head": {"kernel": W, "bias": jnp.ones(3)},
}


@pytest.mark.parametrize(
    ("prunable", "expected"),
    [
        (jp.matching(), ["body/kernel", "head/kernel"]),
        (jp.matching("head/kernel"), ["head/kernel"]),
        (jp.matching("*"), [name for name, _ in named_leaves(TREE)]),
        (jp.matching("*/embedding", "body/bias"), ["body/bias", "embed/embedding"]),
        (jp.matching(["*/embedding", "body/bias"]), ["body/bias", "embed/embedding"]),
        (jp.matching(re.compile("bias$")), ["body/bias", "head/bias"]),
        (jp.matching(lambda name, leaf: leaf.ndim == 1), ["body/bias", "head/bias"]),
        (jp.matching(exclude="head/*"), ["body/kernel"]),
        (jp.matching(exclude=re.compile("body")), ["head/kernel"]),
        (jp.matching(exclude=lambda name, leaf: "body" in name), ["head/kernel"]),
        (jp.matching("*", exclude=["*/bias", "embed/*"]), ["body/kernel", "head/kernel"]),
        (jp.matching("*", exclude=("*/bias",)), ["body/kernel", "embed/embedding", "head/kernel"]),
    ],
)
def test_matching(prunable, expected):
    assert chosen(prunable(TREE)) == expected


def test_matching_keeps_holes():
    assert jp.matching("a")({"a": W, "b": None})["b"] is None


@pytest.mark.parametrize(
    "prunable",
    [jp.matching("heads/*"), jp.matching("head/*", "heads/*"), jp.matching(exclude="heads/*")],
)
def test_a_rule_that_matches_nothing_is_named_with_the_leaves(prunable):
    with pytest.raises(ValueError, match=r"the rule 'heads/\*' matches no leaf") as error:
        prunable(TREE)
    for name, _ in named_leaves(TREE):
        assert repr(name) in str(error.value)


def nested(path, leaf):
    for part in reversed(path.split("/")):
        leaf = {part: leaf}
    return leaf
