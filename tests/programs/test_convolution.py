"""The drop-in convolution equals `lax.conv_general_dilated`, its gradients and its lanes too."""

import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxprune as jp
from jaxprune.programs.convolution import NHWC, conv_general_dilated
from jaxprune.programs.flops import count_flops

HWIO = {"dimension_numbers": NHWC}

CASES = [
    # kernel, strides, padding, kernel dilation
    (1, (1, 1), "SAME", (1, 1)),
    (1, (2, 2), "VALID", (1, 1)),
    (3, (1, 1), "SAME", (1, 1)),
    (3, (2, 2), "SAME", (1, 1)),
    (3, (2, 1), "VALID", (1, 1)),
    (5, (2, 2), "SAME", (1, 1)),
    (5, (1, 1), ((3, 0), (1, 2)), (1, 1)),
    (3, (2, 2), ((4, 3), (0, 0)), (1, 1)),  # wider than the kernel: some outputs see only padding
    (3, (2, 1), "SAME", (2, 3)),
    # along one axis: products of matrices, but for the strides
    ((5, 1), (1, 1), "VALID", (1, 1)),
    ((1, 3), (1, 1), ((1, 0), (2, 0)), (1, 1)),
    ((8, 1), (1, 1), "VALID", (1, 1)),  # two places
    ((3, 1), (2, 1), "SAME", (1, 1)),
]


def arrays(kernel, seeds=()):
    x = jax.random.normal(jax.random.key(0), (*seeds, 2, 9, 8, 3))
    window = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    w = jax.random.normal(jax.random.key(1), (*seeds, *window, 3, 4))
    return x, w


def both(strides, padding, dilation):
    """The drop-in and lax's own, as functions of (x, w) and a scalar loss of each."""
    options = {"rhs_dilation": dilation, "dimension_numbers": NHWC}

    def ours(x, w):
        return conv_general_dilated(x, w, strides, padding, **options)

    def native(x, w):
        return lax.conv_general_dilated(x, w, strides, padding, **options)

    return ours, native


def assert_close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), a, b)


@pytest.mark.parametrize(("kernel", "strides", "padding", "dilation"), CASES)
def test_value_and_gradients_equal_lax(kernel, strides, padding, dilation):
    ours, native = both(strides, padding, dilation)
    x, w = arrays(kernel)
    assert_close(ours(x, w), native(x, w))

    def loss(f):
        return lambda x, w: jnp.sum(jnp.sin(f(x, w)))

    assert_close(*(jax.jit(jax.grad(loss(f), (0, 1)))(x, w) for f in (ours, native)))


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize("in_axes", [(0, 0), (None, 0), (0, None)])
def test_vmapped_gradients_equal_lax(strides, in_axes):
    ours, native = both(strides, "SAME", (1, 1))
    xs, ws = arrays(3, seeds=(3,))
    x, w = (a if axis == 0 else a[0] for a, axis in zip((xs, ws), in_axes, strict=True))

    def gradients(f):
        per_seed = jax.grad(lambda x, w: jnp.sum(jnp.sin(f(x, w))), (0, 1))
        return jax.jit(jax.vmap(per_seed, in_axes))(x, w)

    assert_close(gradients(ours), gradients(native))


def test_gradient_descent_in_a_vmapped_scan_equals_lax():
    ours, native = both((2, 2), "SAME", (1, 1))
    x, w = arrays(3, seeds=(2,))

    def descend(f):
        def step(w, _):
            value, gradient = jax.value_and_grad(lambda w: jnp.mean(f(x[0], w) ** 2))(w)
            return w - 0.1 * gradient, value

        return jax.jit(jax.vmap(lambda w: lax.scan(step, w, length=3)))(w)

    assert_close(descend(ours), descend(native))


@pytest.mark.parametrize(
    ("strides", "padding"), [((1, 1), ((1, 1), (2, 2))), ((3, 2), ((2, 1), (0, 3)))]
)
def test_transposed_convolutions_equal_lax(strides, padding):
    x, w = arrays(3)
    options = {"lhs_dilation": (2, 3), "rhs_dilation": (2, 1), "dimension_numbers": NHWC}

    def gradients(f):
        def loss(x, w):
            return jnp.sum(jnp.sin(f(x, w, strides, padding, **options)))

        return jax.jit(jax.value_and_grad(loss, (0, 1)))(x, w)

    assert_close(gradients(conv_general_dilated), gradients(lax.conv_general_dilated))


@pytest.mark.parametrize("second", ["forward", "reverse"])
@pytest.mark.parametrize(("kernel", "strides", "padding", "dilation"), CASES)
def test_second_derivatives_equal_lax(kernel, strides, padding, dilation, second):
    ours, native = both(strides, padding, dilation)
    primals, tangents = arrays(kernel), tuple(jnp.cos(3 * a) for a in arrays(kernel))

    def hessian_vector_product(f):
        gradient = jax.grad(lambda xw: jnp.mean(jnp.sin(f(*xw))))
        if second == "forward":
            return jax.jvp(gradient, (primals,), (tangents,))[1]
        return jax.vjp(gradient, primals)[1](tangents)[0]

    assert_close(*(jax.jit(hessian_vector_product, static_argnums=0)(f) for f in (ours, native)))


def test_hessian_vector_products_of_a_stack_equal_those_of_lax():
    xs, ws = arrays(3, seeds=(2,))

    def products(conv):
        net = nn.Conv(4, (3, 3), strides=2, conv_general_dilated=conv)

        def one(x, w):
            params = {"kernel": w, "bias": jnp.ones(4)}
            loss = lambda p: jnp.mean(jnp.sin(net.apply({"params": p}, x)))
            return jp.analysis.hvp(loss, params, params)

        return jax.jit(jax.vmap(one))(xs, ws)

    assert_close(products(conv_general_dilated), products(lax.conv_general_dilated))


@pytest.mark.parametrize("second", [False, True])
def test_derivatives_ask_for_the_fast_form_only(second):
    x, w = arrays(3)

    def gradient(w):
        f = lambda w: jnp.sum(jnp.sin(conv_general_dilated(x, w, (2, 2), "SAME", **HWIO)))
        return jax.jvp(jax.grad(f), (w,), (w,))[1] if second else jax.grad(f)(w)

    forms = [line for line in jax.jit(gradient).lower(w).as_text().splitlines() if "convol" in line]
    assert len(forms) >= 2
    for form in forms:  # NHWC x HWIO -> NHWC, one group
        assert "dim_numbers = [b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in form
        assert "feature_group_count = 1" in form and "reverse = [true" not in form


def test_flops_are_those_of_lax():
    x, w = arrays(3)

    def flops(f):
        apply = lambda p, x: f(x, p["w"], (1, 1), "SAME", **HWIO)
        return count_flops(apply, {"w": w}, x)

    assert flops(conv_general_dilated) == flops(lax.conv_general_dilated)
    assert flops(conv_general_dilated).leaves["w"] > 0


def test_what_it_does_not_cover_goes_to_lax():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
    grouped = jax.random.normal(jax.random.key(1), (3, 3, 1, 4))
    options = {"dimension_numbers": NHWC, "feature_group_count": 4}
    assert_close(
        conv_general_dilated(x, grouped, (1, 1), "SAME", **options),
        lax.conv_general_dilated(x, grouped, (1, 1), "SAME", **options),
    )
    half, kernel = x.astype(jnp.bfloat16), jnp.ones((3, 3, 4, 5), jnp.bfloat16)
    options = {"dimension_numbers": NHWC, "preferred_element_type": jnp.float32}
    wide = conv_general_dilated(half, kernel, (1, 1), "SAME", **options)
    assert wide.dtype == jnp.float32
    assert_close(wide, lax.conv_general_dilated(half, kernel, (1, 1), "SAME", **options))
    nchw, oihw = x.transpose(0, 3, 1, 2), jax.random.normal(jax.random.key(1), (5, 4, 3, 3))
    assert_close(
        conv_general_dilated(nchw, oihw, (1, 1), "SAME"),
        lax.conv_general_dilated(nchw, oihw, (1, 1), "SAME"),
    )
    one_d, kernel = x[:, 0], jax.random.normal(jax.random.key(1), (3, 4, 5))
    numbers = ("NWC", "WIO", "NWC")
    assert_close(
        conv_general_dilated(one_d, kernel, (1,), "SAME", dimension_numbers=numbers),
        lax.conv_general_dilated(one_d, kernel, (1,), "SAME", dimension_numbers=numbers),
    )


def test_it_takes_what_lax_takes():
    assert inspect.signature(conv_general_dilated).parameters.keys() == (
        inspect.signature(lax.conv_general_dilated).parameters.keys()
    )


def test_along_one_axis_no_convolution_is_left():
    (x, w), (ours, _) = arrays((5, 1)), both((1, 1), "VALID", (1, 1))
    x = x[:, :, :1]
    gradient = jax.jit(jax.grad(lambda x, w: jnp.sum(jnp.sin(ours(x, w))), (0, 1)))
    said = gradient.lower(x, w).as_text()
    assert "dot_general" in said and "convolution" not in said
    flops = count_flops(lambda w, x: ours(x, w), w, x)
    assert sum(flops.leaves.values()) == 2 * (2 * 5) * (5 * 3) * 4  # rows, window, outputs


def test_drops_into_linen_and_nnx():
    x, _ = arrays(3)
    native = nn.Conv(4, (3, 3), strides=2, kernel_dilation=1)
    ours = nn.Conv(4, (3, 3), strides=2, conv_general_dilated=jp.conv_general_dilated)
    params = native.init(jax.random.key(0), x)
    assert_close(ours.apply(params, x), native.apply(params, x))
    layers = [
        nnx.Conv(3, 4, (3, 3), strides=2, conv_general_dilated=conv, rngs=nnx.Rngs(0))
        for conv in (jp.conv_general_dilated, lax.conv_general_dilated)
    ]
    assert_close(*(layer(x) for layer in layers))


@pytest.mark.parametrize(
    "wrong",
    [
        {"rhs": jnp.ones((3, 3, 2, 4))},  # channels
        {"rhs": jnp.ones((3, 3, 3, 4), jnp.bfloat16)},
        {"window_strides": (1,)},
        {"window_strides": (1, 1, 1)},
        {"padding": "NEAR"},
        {"padding": ((1, 1),)},
        {"rhs_dilation": (1, 1, 1)},
        {"feature_group_count": 2},
    ],
)
def test_what_lax_refuses_is_refused(wrong):
    lhs, rhs = arrays(3)
    call = {"lhs": lhs, "rhs": rhs, "window_strides": (1, 1), "padding": "SAME", **HWIO, **wrong}
    with pytest.raises((TypeError, ValueError, RuntimeError)) as theirs:
        lax.conv_general_dilated(**call)
    with pytest.raises(type(theirs.value)):
        conv_general_dilated(**call)
