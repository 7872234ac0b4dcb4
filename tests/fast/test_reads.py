"""Kernels that are no plain matrices: convolutions, attention, stacks of layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprune as jp
from jaxprune.fast import choose
from jaxprune.fast.forms import FORMS

DRAW = np.random.default_rng(0).standard_normal


def array(*shape):
    return jnp.asarray(DRAW(shape), jnp.float32)


def take(monkeypatch, form):
    """The times make the forms whose names have these words faster than dense."""

    def times(kernel, forms, products, rounds, clock):
        for product in products:  # each of them computes the same
            x = jnp.ones(product.x.shape, product.x.dtype)
            wanted = product.dense(x, kernel)
            for own in forms:
                close(product.formed(x, own.form), wanted)
        return {"dense": 2.0} | {own.name: 1.0 if form in own.name else 4.0 for own in forms}

    monkeypatch.setattr(choose, "times", times)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def in_form(fn, params, masks, *args):
    """The table, after the network was compared with the masked function."""
    net = jp.fast.fast(fn, params, masks, *args)
    wanted = fn(jp.apply_masks(params, masks), *args)
    jax.tree.map(close, jax.jit(net.fn)(net.params, *args), wanted)
    return net


def blocks(shape, h=8, w=8, kept=0.25):
    """A mask of blocks of a matrix; at least one in each block of outputs is not there."""
    mask = np.random.default_rng(1).random((-(-shape[0] // h), -(-shape[1] // w))) < kept
    return jnp.asarray(np.repeat(np.repeat(mask, h, 0), w, 1)[: shape[0], : shape[1]])


CONVS = {
    "same": {"padding": "SAME"},
    "strides": {"window_strides": (2, 1), "padding": ((1, 1), (0, 2))},
    "dilation": {"padding": "VALID", "rhs_dilation": (2, 1)},
    "nchw": {"padding": "SAME", "dimension_numbers": ("NCHW", "OIHW", "NCHW")},
}


@pytest.mark.full
@pytest.mark.parametrize("form", ["shifted slices", "cut to used"])
@pytest.mark.parametrize("case", CONVS)
def test_a_convolution_with_a_window(monkeypatch, form, case):
    how = {"window_strides": (1, 1), "dimension_numbers": ("NHWC", "HWIO", "NHWC")} | CONVS[case]
    kernel, x = array(3, 3, 12, 16), array(2, 7, 8, 12)  # 12 channels: blocks over two taps
    mask = blocks((9 * 12, 16)).reshape(kernel.shape)
    if form.startswith("cut"):
        used = np.outer(np.arange(12) % 3 == 0, np.arange(16) > 4)
        mask = jnp.asarray(np.broadcast_to(used, kernel.shape))
    if case == "nchw":
        kernel, mask = (a.transpose(3, 2, 0, 1) for a in (kernel, mask))
        x = x.transpose(0, 3, 1, 2)
    take(monkeypatch, form)
    fn = lambda p, x: lax.conv_general_dilated(x, p["w"], **how)
    net = in_form(fn, {"w": kernel}, {"w": mask}, x)
    assert form in net.choices[0].form and isinstance(net.params["w"], FORMS)
    close(jax.vmap(net.fn, (None, 0))(net.params, x[None])[0], net.fn(net.params, x))
    both = net.fn, lambda p, x: fn({"w": jnp.where(mask, kernel, 0)}, x)
    slopes = [jax.grad(lambda x, f=f: (f(net.params, x) ** 2).sum())(x) for f in both]
    close(*slopes)


@pytest.mark.full
def test_a_flax_network_of_convolutions(monkeypatch):
    """3x3 and 1x1, by the recipes' convolution, in the layers of flax."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            conv = lambda n, k, s: nn.Conv(
                n, (k, k), strides=s, conv_general_dilated=jp.conv_general_dilated
            )
            x = nn.relu(conv(16, 3, 1)(x))
            return conv(16, 1, 2)(x)

    x = array(2, 6, 6, 16)
    params = Net().init(jax.random.key(0), x)["params"]
    masks = jax.tree.map(lambda w: None, params)
    masks["Conv_0"]["kernel"] = blocks((144, 16)).reshape(3, 3, 16, 16)
    masks["Conv_1"]["kernel"] = jnp.eye(2, dtype=bool).repeat(8, 0).repeat(8, 1)[None, None]
    take(monkeypatch, "8 x 8")
    net = in_form(lambda p, x: Net().apply({"params": p}, x), params, masks, x)
    assert [choice.rows for choice in net.choices] == [2 * 36, 2 * 9]
    forms = [choice.form for choice in net.choices]
    assert forms[0].endswith("shifted slices") and "8 x 8, " in forms[1]
    assert "slices" not in forms[1]  # a product


@pytest.mark.full
def test_kernels_of_attention(monkeypatch):
    layer = nn.MultiHeadDotProductAttention(num_heads=4, deterministic=True)
    x = array(2, 5, 32)
    params = layer.init(jax.random.key(0), x)["params"]
    masks = jax.tree.map(lambda w: None, params)
    for name in ("query", "key", "value", "out"):  # (in, heads, features), (heads, features, out)
        masks[name]["kernel"] = blocks((32, 32)).reshape(params[name]["kernel"].shape)
    take(monkeypatch, "by rows")
    net = in_form(lambda p, x: layer.apply({"params": p}, x), params, masks, x)
    assert {choice.form for choice in net.choices} == {"blocks of 8 x 8, by rows"}


@pytest.mark.full
@pytest.mark.parametrize("equation", ["bi,io->bo", "oi,bi->bo", "bi,oi->ob", "bij,hijo->boh"])
def test_any_contraction_of_a_kernel(monkeypatch, equation):
    """Kernels on the left, transposed, with several axes of inputs and of outputs."""
    sizes = {"b": 3, "i": 16, "o": 16, "j": 2, "h": 2}
    operands = equation.split("->")[0].split(",")
    left = "b" not in operands[0]
    x, kernel = (array(*(sizes[i] for i in operands[k])) for k in ((1, 0) if left else (0, 1)))
    mask = blocks((16, kernel.size // 16)).reshape(kernel.shape)
    if kernel.ndim == 4:
        used = np.broadcast_to(np.arange(16) % 4 > 1, kernel.shape)
        mask = mask & jnp.asarray(used)
    take(monkeypatch, "by columns" if kernel.ndim == 2 else "cut")

    def fn(p, x):
        return jnp.einsum(equation, *([p["w"], x] if left else [x, p["w"]]))

    net = in_form(fn, {"w": kernel}, {"w": mask}, x)
    assert net.choices[0].form != "dense"


@pytest.mark.full
def test_layers_of_a_scan_and_a_kernel_of_all_turns(monkeypatch):
    params = {"layers": {"w": array(3, 16, 16), "b": array(3, 16)}, "shared": array(16, 16)}
    masks = {
        "layers": {"w": jnp.stack([blocks((16, 16), kept=k) for k in (0.2, 0.5, 0.8)]), "b": None},
        "shared": blocks((16, 16), kept=0.5),
    }
    masks["layers"]["w"] = masks["layers"]["w"].at[2, :, :8].set(False)

    def fn(p, x):
        def turn(x, layer):
            y = jnp.tanh(x @ layer["w"] + layer["b"][None] + x @ p["shared"])
            return y, y.sum()

        return lax.scan(turn, x, p["layers"], reverse=True)

    take(monkeypatch, "by rows")
    x = array(4, 16)
    net = in_form(fn, params, masks, x)
    assert {choice.form for choice in net.choices} == {"blocks of 8 x 8, by rows"}
    assert net.params["layers"]["w"].blocks.values.shape[0] == 3
    both = (net.fn, net.params), (fn, jp.apply_masks(params, masks))
    close(*(jax.grad(lambda x, f=f, p=p: (f(p, x)[0] ** 2).sum())(x) for f, p in both))


def test_a_stack_that_is_read_otherwise_stays_dense_and_says_why(monkeypatch):
    params = {"w": array(2, 16, 16), "grouped": array(2, 3, 3, 1, 16)}
    masks = {"w": jnp.zeros((2, 16, 16), bool), "grouped": jnp.zeros((2, 3, 3, 1, 16), bool)}

    def fn(p, x):
        def turn(x, layer):
            w, kernel = layer
            dims = ("NHWC", "HWIO", "NHWC")
            return lax.conv_general_dilated(
                *(x @ w, kernel, (1, 1), "SAME"), dimension_numbers=dims, feature_group_count=16
            ), None

        return lax.scan(turn, x, (p["w"], p["grouped"]))[0] + (p["w"] ** 2).sum()

    take(monkeypatch, "by rows")
    net = in_form(fn, params, masks, array(1, 4, 4, 16))
    why = {choice.leaf: choice.others for choice in net.choices}
    assert why["w"].startswith("it is read by") and "no product" in why["w"]
    assert why["grouped"].startswith("it is the kernel of a convolution of groups")


@pytest.mark.full
def test_a_kernel_without_a_weight(monkeypatch):
    params = {"w": array(16, 16), "conv": array(3, 3, 16, 16)}
    masks = jax.tree.map(lambda w: jnp.zeros(w.shape, bool), params)

    def fn(p, x):
        dims = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(x, p["conv"], (1, 1), "SAME", dimension_numbers=dims)
        return y + x @ p["w"]

    for form in ("cut", "by rows", "slices"):
        take(monkeypatch, form)
        in_form(fn, params, masks, array(1, 4, 4, 16))


@pytest.mark.full
def test_params_that_are_dense_again_say_the_way_out(monkeypatch):
    take(monkeypatch, "by rows")
    params, masks = {"w": array(16, 16)}, {"w": blocks((16, 16))}
    net = jp.fast.fast(lambda p, x: x @ p["w"], params, masks, array(2, 16))
    with pytest.raises(ValueError, match=r"'w' is an array.*network.params"):
        net.fn(params, array(2, 16))
