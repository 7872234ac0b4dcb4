"""Other weights in the backward pass, of products in any program; and BDWP, which is made of it.

Each program of `PROGRAMS` is linear in its input and in its kernel, so that the gradient of the
input is that of the program with the backward weights, and nothing else.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprune as jp
from tests.quick import quick

DRAW = np.random.default_rng(0).standard_normal
NHWC = ("NHWC", "HWIO", "NHWC")


def draw(*shape):
    return jnp.asarray(DRAW(shape), jnp.float32)


def conv(convolve=lax.conv_general_dilated, **how):
    given = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": NHWC} | how
    return lambda w, x: convolve(x, w, **given)


def layers(w, x):
    return lax.scan(lambda x, layer: (x @ layer, x.sum()), x, w)


def turns(w, x):
    return lax.fori_loop(0, 3, lambda i, x: x @ w, x)


def passed(w, x):
    return nn.Dense(4, use_bias=False).apply({"params": {"kernel": w}}, x)


IMAGE = (2, 6, 6, 4)
# name -> (function of a kernel and an input, shape of the kernel, shape of the input)
PROGRAMS = {
    "matrix": (lambda w, x: x @ w, (4, 8), (3, 4)),
    "transposed": (lambda w, x: x @ w.T, (8, 4), (3, 4)),
    "kernel first": (lambda w, x: jnp.einsum("io,bi->ob", w, x), (4, 8), (3, 4)),
    "reshaped": (lambda w, x: x @ w.reshape(4, 8), (2, 2, 8), (3, 4)),
    "halves": (lambda w, x: [x @ half for half in jnp.split(w, 2, 1)], (4, 8), (3, 4)),
    "a layer of a stack": (lambda w, x: x @ w[1], (2, 4, 8), (3, 4)),
    "a layer by number": (lambda w, x: x @ w[jnp.argmax(x[0])], (4, 4, 8), (3, 4)),
    "repeated": (lambda w, x: jnp.einsum("bi,bio->bo", x, w[None].repeat(3, 0)), (4, 8), (3, 4)),
    "flax": (passed, (4, 4), (3, 4)),
    "jit": (jax.jit(lambda w, x: x @ w), (4, 8), (3, 4)),
    "remat": (jax.checkpoint(lambda w, x: jnp.sum(x @ w)), (4, 8), (3, 4)),
    "cond": (lambda w, x: lax.cond(True, lambda: x @ w, lambda: x @ -x.T @ x), (4, 4), (4, 4)),
    "scan over layers": (layers, (3, 4, 4), (3, 4)),
    "scan with one kernel": (turns, (4, 4), (3, 4)),
    "vmap": (jax.vmap(lambda w, x: x @ w, (None, 0)), (4, 8), (2, 3, 4)),
    "experts": (lambda w, x: jnp.einsum("eio,ebi->ebo", w, x), (2, 4, 8), (2, 3, 4)),
    "query": (lambda w, x: jnp.einsum("bti,ihd->bthd", x, w), (4, 2, 4), (2, 3, 4)),
    "out": (lambda w, x: jnp.einsum("bthd,hdo->bto", x, w), (2, 4, 4), (2, 3, 2, 4)),
    "conv": (conv(), (3, 3, 4, 8), IMAGE),
    "fast conv": (conv(jp.conv_general_dilated, window_strides=(2, 2)), (3, 3, 4, 8), IMAGE),
    "strided, dilated": (
        conv(window_strides=(2, 1), padding="VALID", rhs_dilation=(1, 2)),
        *((2, 2, 4, 8), IMAGE),
    ),
    "transposed conv": (conv(lhs_dilation=(2, 2), padding=[(2, 1), (2, 1)]), (3, 3, 4, 8), IMAGE),
    "depthwise": (conv(feature_group_count=4), (3, 3, 1, 8), IMAGE),
}
SOON = ("matrix", "query", "scan over layers", "remat", "cond", "conv", "experts")
SEVERAL_TIMES = ("scan over layers", "scan with one kernel")  # not linear in the kernel


@pytest.mark.parametrize("name", quick(PROGRAMS, *SOON))
def test_inputs_have_the_backward_weights_and_weights_the_usual_gradient(name):
    program, shape, of_input = PROGRAMS[name]
    w, other, x = draw(*shape), draw(*shape), draw(*of_input)
    y = program(w, x)
    leaves, treedef = jax.tree.flatten(y)
    dy = jax.tree.unflatten(treedef, [draw(*leaf.shape) for leaf in leaves])

    def network(w, other, x):
        of_tree = lambda params, x: program(params["w"], x)
        return jp.reparam.backward_weights(of_tree)({"w": w}, {"w": other}, x)

    @jax.jit
    def both(w, other, x):
        y, pull = jax.vjp(network, w, other, x)
        return y, pull(dy), jax.vjp(program, w, x)[1](dy)[0], jax.vjp(program, other, x)[1](dy)[1]

    given, (dw, dother, dx), usual, wanted = both(w, other, x)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-4)
    jax.tree.map(close, given, y)
    close(dx, wanted)
    assert (dother == 0).all() and np.abs(dx).max() > 0.1
    if name not in SEVERAL_TIMES:
        close(dw, usual)


def test_a_network_of_two_layers_by_hand():
    w, v, w_other, v_other = draw(4, 5), draw(5, 3), draw(4, 5), draw(5, 3)
    x, dy = draw(2, 4), draw(2, 3)
    fn = lambda params, x: jax.nn.relu(x @ params["w"]) @ params["v"]
    run = jp.reparam.backward_weights(fn)
    params, others = {"w": w, "v": v}, {"w": w_other, "v": v_other}
    y, pull = jax.vjp(lambda params, x: run(params, others, x), params, x)
    slopes, dx = pull(dy)
    hidden = x @ w
    dh = jnp.where(hidden > 0, dy @ v_other.T, 0)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    close(y, fn(params, x))
    close(slopes["v"], jax.nn.relu(hidden).T @ dy)
    close(slopes["w"], x.T @ dh)
    close(dx, dh @ w_other.T)
    only_v = lambda x: run(params, {"w": None, "v": v_other}, x)
    close(jax.vjp(only_v, x)[1](dy)[0], dh @ w.T)
    seeds = jax.vmap(run, (0, None, None))(jax.tree.map(lambda a: a[None], params), others, x)
    close(seeds[0], y)


def test_a_weight_that_is_looked_up_and_multiplied():
    """A tied embedding: rows of the table have no input, and so the usual gradient."""
    table, other, ids = draw(6, 4), draw(6, 4), jnp.array([1, 5])
    fn = lambda params, ids: params["t"][ids] @ params["t"].T
    slope = jax.grad(lambda t: jp.reparam.backward_weights(fn)({"t": t}, {"t": other}, ids).sum())(
        table
    )
    wanted = jnp.tile(table[ids].sum(0), (6, 1)).at[ids].add(other.sum(0))
    np.testing.assert_allclose(slope, wanted, rtol=1e-5)


@jax.custom_jvp
def opaque(x, w):
    return x @ w


opaque.defjvp(lambda primals, tangents: (opaque(*primals), opaque(*tangents)))


def test_what_has_no_backward_weights_is_told():
    x, w = jnp.ones((2, 4)), jnp.ones((4, 4))
    told = {
        r"'w'.*read by mul, at test_backward_weights.py:\d+": lambda p, x: x @ (p["w"] * 2),
        r"'w'.*read by custom_jvp_call, at test_backward": lambda p, x: opaque(x, p["w"]),
        r"'w'.*read by while": lambda p, x: lax.fori_loop(0, p["n"], lambda i, x: x @ p["w"], x),
        r"'w'.*nothing reads it": lambda p, x: x,
    }
    for message, fn in told.items():
        params, backward = {"w": w, "n": 2}, {"w": w, "n": None}
        with pytest.raises(ValueError, match=f"no product reads {message}.*exclude"):
            jp.reparam.backward_weights(fn)(params, backward, x)
    run = jp.reparam.backward_weights(lambda p, x: x @ p["w"])
    with pytest.raises(ValueError, match=r"has 'v', and the params have no such leaf"):
        run({"w": w}, {"v": w}, x)
    with pytest.raises(ValueError, match=r"'w' is float32 of shape \(4, 4\) in the forward.*2\)"):
        run({"w": w}, {"w": w[:, :2]}, x)
    with pytest.raises(TypeError) as error:
        run({"w": w}, {"w": w}, jnp.ones((2, 5)))
    assert any("does not take these params" in note for note in error.value.__notes__)


# --- BDWP -----------------------------------------------------------------------------------------

B = np.array(
    [[0.9, 0.8, 0.1, 0.2], [0.7, 0.6, 0.3, 0.5], [0.2, 0.4, 0.9, 0.1], [0.3, 0.1, 0.6, 0.7]]
)
# the example has outputs in rows; a kernel has them in columns
KERNEL = jnp.asarray(B * [1, -1, 1, -1], jnp.float32).T


def test_the_worked_example_of_bdwp():
    network = jp.reparam.bdwp(lambda params, x: x @ params["kernel"], 2, 4)
    x, dy = jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([1.0, -1.0, 0.5, 2.0])
    y, pull = jax.vjp(network, {"kernel": KERNEL}, x)
    slopes, dx = pull(dy)
    np.testing.assert_allclose(y, [-0.7, -0.5, 1.9, -1], atol=1e-6)
    np.testing.assert_allclose(dx, [0.2, -0.2, 1.65, -0.9], atol=1e-6)
    np.testing.assert_allclose(slopes["kernel"], jnp.outer(x, dy), atol=1e-6)


def test_the_last_network_of_bdwp_is_that_of_nm():
    params = {"query": {"kernel": draw(4, 2, 3)}, "out": {"kernel": draw(2, 3, 4)}}

    def fn(params, x):
        heads = jnp.einsum("bi,ihd->bhd", x, params["query"]["kernel"])
        return jnp.einsum("bhd,hdo->bo", heads, params["out"]["kernel"])

    network, x = jp.reparam.bdwp(fn, 1, 2), draw(3, 4)
    masks = jp.select(jp.magnitude(params), jp.uniform, 0.5, jp.nm(1, 2))
    used = jp.apply_masks(params, masks)
    np.testing.assert_allclose(network(params, x), fn(used, x), rtol=1e-6)
    dx = jax.grad(lambda x: network(params, x).sum())(x)
    query, out = params["query"]["kernel"].reshape(4, 6), params["out"]["kernel"].reshape(6, 4)
    largest = lambda w: jnp.where(jp.nm(1, 2, axis=-1)(jnp.abs(w), 0.5), w, 0)
    wanted = largest(query) @ largest(out).sum(1)
    np.testing.assert_allclose(dx, jnp.tile(wanted, (3, 1)), rtol=1e-5, atol=1e-6)


def test_bdwp_trains_a_loss():
    x = draw(64, 8)
    y = x @ draw(8, 4)
    loss = lambda params, x, y: jnp.mean((jnp.tanh(x @ params["a"]) @ params["b"] - y) ** 2)
    network = jp.reparam.bdwp(loss, 2, 4)
    start = {"a": draw(8, 16), "b": 0.1 * draw(16, 4)}

    def step(params, _):
        value, slopes = jax.value_and_grad(network)(params, x, y)
        return jax.tree.map(lambda w, g: w - 0.1 * g, params, slopes), value

    _, values = jax.lax.scan(step, start, length=200)
    assert values[-1] < 0.5 * values[0]


def test_what_bdwp_cannot_prune_is_told():
    fn = lambda params, x: x @ params["kernel"]
    with pytest.raises(ValueError, match="bdwp: 4 of 4 prunes nothing"):
        jp.reparam.bdwp(fn, 4, 4)
    for shape, axis in (((6, 4), -2), ((4, 6), -1)):
        with pytest.raises(ValueError, match=f"'kernel': nm.*needs axis {axis} divisible by 4"):
            jp.reparam.bdwp(fn, 2, 4)({"kernel": jnp.ones(shape)}, jnp.ones((1, shape[0])))
    with pytest.raises(ValueError, match="bdwp: there is nothing to prune"):
        jp.reparam.bdwp(fn, 2, 4)({"bias": jnp.ones(4)}, jnp.ones((1, 4)))
