"""Layouts as a program reads them, against layouts known by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.prunable.layout import named_layout
from jaxprune.trees import named_leaves

X = jnp.ones((3, 8))


def axes(layout):
    return layout.inputs, layout.outputs, layout.stacked


@pytest.mark.parametrize(
    ("shape", "fn", "wanted"),
    [
        ((8, 4), lambda w, x: x @ w, ((0,), (1,), ())),
        ((4, 8), lambda w, x: x @ w.T, ((1,), (0,), ())),
        ((8, 4), lambda w, x: x @ (0.5 * w.astype(jnp.bfloat16)), ((0,), (1,), ())),
        ((8, 2, 3), lambda w, x: x @ w.reshape(8, 6), ((0,), (1, 2), ())),
        ((2, 4, 3), lambda w, x: x @ w.reshape(8, 3), ((0, 1), (2,), ())),
        ((8, 2, 3), lambda w, x: jnp.einsum("bi,iho->bho", x, w), ((0,), (1, 2), ())),
        ((4, 1, 8), lambda w, x: x @ w[:, 0].T, ((2,), (0,), ())),
        (
            (5, 8, 8),
            lambda w, x: jax.lax.scan(lambda x, k: (x @ k, None), x, w),
            ((1,), (2,), (0,)),
        ),
        ((5, 8, 4), lambda w, x: jax.vmap(lambda k: x @ k)(w), ((1,), (0, 2), ())),
        ((3, 8, 4), lambda w, x: jax.vmap(jnp.matmul)(x, w), ((1,), (2,), (0,))),
        (
            (2, 8, 4),
            lambda w, x: jax.lax.ragged_dot(x, w, jnp.array([1, 2])),
            ((1,), (2,), (0,)),
        ),
        ((8, 4), lambda w, x: x[:, ::-1] @ w[::-1], ((0,), (1,), ())),
        ((8, 4), lambda w, x: jax.jit(jax.checkpoint(jnp.matmul))(x, w), ((0,), (1,), ())),
        ((8, 4), lambda w, x: x @ jnp.where(w > 0, w, 0), None),
    ],
)
def test_layouts_of_one_product(shape, fn, wanted):
    found = jp.layouts(fn, jax.ShapeDtypeStruct(shape, jnp.float32), X)[""]
    assert axes(found) == (wanted or ((), (), ()))


def test_a_convolution_and_what_is_no_product():
    module = nn.Sequential([nn.Conv(4, (3,)), nn.LayerNorm(), nn.Dense(2)])
    params = module.init(jax.random.key(0), jnp.ones((1, 5, 2)))
    found = jp.layouts(module.apply, params, jnp.ones((1, 5, 2)))
    assert axes(found["params/layers_0/kernel"]) == ((1,), (2,), ())
    assert axes(found["params/layers_2/kernel"]) == ((0,), (1,), ())
    assert found["params/layers_1/scale"].why.startswith("no product reads it, but ")


@pytest.mark.parametrize(
    ("fn", "why"),
    [
        (lambda p, x: x, "nothing reads it"),
        (lambda p, x: x @ p + p[0, 0], "it is read in several ways: a product with inputs (0,)"),
        (lambda p, x: x @ p @ p.T, "it is read in several ways: a product with inputs (0,) and"),
        (lambda p, x: p, "no product reads it, but the end of the program"),
        (lambda p, x: p[jnp.array([0])], "no product reads it, but gather"),
    ],
)
def test_what_is_not_known_says_why(fn, why):
    assert jp.layouts(fn, jnp.ones((8, 8)), X)[""].why.startswith(why)


def test_attention_and_scans_of_flax_are_known_from_their_program():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return x + nn.MultiHeadDotProductAttention(2)(x), None

    net = nn.scan(Block, variable_axes={"params": 1}, split_rngs={"params": True}, length=3)()
    x = jnp.ones((1, 4, 8))
    params = jax.eval_shape(net.init, jax.random.key(0), x, None)
    found = jp.layouts(net.apply, params, x, None)
    own = "params/MultiHeadDotProductAttention_0/"
    assert axes(found[own + "query/kernel"]) == ((0,), (2, 3), (1,))
    assert axes(found[own + "out/kernel"]) == ((0, 2), (3,), (1,))
    chosen = jp.matching(layouts=found)(params)
    names = [path for path, leaf in named_leaves(chosen) if leaf is not None]
    assert names[:2] == [own + "0/" + k + "/kernel" for k in ("key", "out")]
    assert {leaf.shape for leaf in jax.tree.leaves(chosen)} == {(8, 8)}


def test_the_program_decides_what_is_a_kernel_and_where_its_inputs_are():
    fn = lambda p, x: (x + p["pos"]) @ p["a"] @ p["b"] + p["shift"][None]
    params = {
        "a": jnp.ones((8, 4)),
        "b": jnp.ones((4, 6)),
        "pos": jnp.ones((3, 8)),
        "shift": jnp.ones((3, 6)),
    }
    params["shift"] = jnp.ones(6)
    chosen = jp.matching(layouts=jp.layouts(fn, params, X))(params)
    assert [path for path, leaf in named_leaves(chosen) if leaf is not None] == ["a", "b"]
    torch = {"weight": jax.random.uniform(jax.random.key(0), (4, 8))}  # (outputs, inputs)
    prunable = jp.matching(layouts=jp.layouts(lambda p, x: x @ p["weight"].T, torch, X))
    mask = jp.select(jp.magnitude(prunable(torch)), jp.uniform, 0.5, jp.nm(2, 4))
    np.testing.assert_array_equal(np.asarray(mask["weight"]).reshape(4, 2, 4).sum(2), 2)


def test_names_of_keras():
    attention, transposed = "attention/attention_output/kernel", "conv2d_transpose_1/kernel"
    assert named_layout(attention, (2, 4, 8)) == jp.Layout((0, 1), 2)
    assert named_layout(transposed, (3, 3, 5, 4)) == jp.Layout(3, 2)  # (window, outputs, inputs)
    assert named_layout("ConvTranspose_0/kernel", (3, 3, 5, 4)) == jp.Layout(2, 3)  # of Flax


def test_no_function():
    with pytest.raises(TypeError, match="traces a function"):
        jp.layouts({}, {}, X)
