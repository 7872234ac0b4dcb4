"""Relaxed costs: by hand, equal to those of neurons where gates are 0 or 1, differentiable."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.coupling.networks import NETWORKS, built
from tests.coupling.test_analyze import weights
from tests.structured.test_compact import some


def two_convolutions(params, x):
    for layer in "ab":
        x = jax.lax.conv_general_dilated(
            x, params[layer], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    return x.mean((1, 2)) @ params["c"]


def test_two_convolutions_by_the_numbers():
    """3x3 convolutions 3 -> 4 -> 2 on 8x8; a product of 2 x 1 reads their mean."""
    params = {"a": jnp.ones((3, 3, 3, 4)), "b": jnp.ones((3, 3, 4, 2)), "c": jnp.ones((2, 1))}
    structure = jp.analyze(two_convolutions, params, jnp.ones((1, 8, 8, 3)))
    dense = jp.structured.cost(structure).flops
    assert dense == 2 * (11_520 + 2)
    s = {"a": jnp.array([1, 0.2, -0.4, -0.9]), "b": jnp.ones(2)}
    gates = jp.gates.continuous_sparsification(5.0, float("inf")).deterministic(s)
    relaxed = jp.structured.relaxed_cost(structure, gates).flops
    of_two = float(relaxed) / 2 - float(2 * jax.nn.sigmoid(5.0))
    assert of_two == pytest.approx(5326.8, abs=0.1)
    assert of_two / 11_520 == pytest.approx(0.4624, abs=5e-5)


@pytest.mark.parametrize("name", ["concat", "separable", "attention", "scan", "batch norm"])
def test_open_and_closed_gates_cost_what_neurons_do(name):
    variables, x = built(name)
    structure = jp.analyze(NETWORKS[name].module.apply, variables, x)
    kept = some(structure)
    gates = {n: jnp.asarray(own, jnp.float32) for n, own in kept.items()}
    relaxed = jp.structured.relaxed_cost(structure, gates)
    np.testing.assert_allclose(relaxed, jp.structured.cost(structure, kept), rtol=1e-6)
    np.testing.assert_allclose(
        jp.structured.relaxed_cost(structure, {}), jp.structured.cost(structure), rtol=1e-6
    )


def branches(params, x):
    """A product of 4 x 8, then a cheap branch, 8 x 2, or a dear one, 8 x 6 and 6 x 2."""
    dear = lambda h: h @ params["c"] @ params["d"]
    return jax.lax.cond(x[0, 0] > 0, lambda h: h @ params["b"], dear, x @ params["a"])


def test_the_dearest_branch_counts():
    params = weights(a=(4, 8), b=(8, 2), c=(8, 6), d=(6, 2))
    structure = jp.analyze(branches, params, jnp.ones((1, 4)))
    assert jp.structured.cost(structure).flops == 2 * (32 + 48 + 12)
    assert jp.structured.relaxed_cost(structure, {}).flops == 2 * (32 + 48 + 12)
    kept = {"c": np.arange(6) < 1}  # now the other branch is the dearer: 16 against 8 + 2
    assert jp.structured.cost(structure, kept).flops == 2 * (32 + 16)
    gates = {"c": jnp.full(6, 1 / 6)}
    np.testing.assert_allclose(jp.structured.relaxed_cost(structure, gates).flops, 2 * (32 + 16))
    slope = jax.grad(lambda f: jp.structured.relaxed_cost(structure, {"c": f}).flops)
    assert (slope(jnp.ones(6)) == 2 * (8 + 2)).all() and not slope(gates["c"]).any()


def test_derivatives_do_not_count():
    """Of a function with a derivative of its own the function counts, not the derivative."""

    @jax.custom_jvp
    def square(h, w):
        return h @ w

    @square.defjvp
    def square_jvp(primals, tangents):
        (h, w), (dh, dw) = primals, tangents
        return h @ w, dh @ w + h @ dw

    @jax.custom_vjp
    def other(h, w):
        return h @ w

    other.defvjp(lambda h, w: (h @ w, (h, w)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))
    params = weights(a=(4, 8), b=(8, 2))
    for product in (square, other):
        fn = lambda p, x, product=product: product(jnp.tanh(x @ p["a"]), p["b"])
        structure = jp.analyze(fn, params, jnp.ones((1, 4)))
        assert (
            jp.structured.cost(structure).flops
            == jp.structured.relaxed_cost(structure, {}).flops
            == 2 * (32 + 16)
        )


def test_halved_gates_halve_each_side():
    """As after cutting: both sides of a layer shrink, and a target of 1/2 gives a quarter."""
    params = weights(a=(4, 8), b=(8, 8), c=(8, 2))
    fn = lambda p, x: jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]
    structure = jp.analyze(fn, params, jnp.ones((1, 4)))
    halves = {name: jnp.full(8, 0.5) for name in "ab"}
    assert float(jp.structured.relaxed_cost(structure, halves).flops) == 2 * (16 + 16 + 8)
    assert float(jp.structured.relaxed_cost(structure, halves).neurons) == 8
    slope = jax.jit(jax.grad(lambda f: jp.structured.relaxed_cost(structure, f).flops))(halves)
    np.testing.assert_allclose(slope["a"], 2 * (4 + 4))  # inputs, and half of the outputs
    np.testing.assert_allclose(slope["b"], 2 * (4 + 2))


def test_weights_of_some_leaves_and_bool_gates():
    variables, x = built("batch norm")
    structure = jp.analyze(NETWORKS["batch norm"].module.apply, variables, x)
    kept = some(structure)
    of_kernels = jp.structured.relaxed_cost(structure, kept, prunable=jp.kernels)
    masks = jp.structured.masks(structure, kept)["params"]
    kernels = [mask["kernel"] for mask in masks.values() if "kernel" in mask]
    assert int(of_kernels.weights) == sum(int(mask.sum()) for mask in kernels)
    everything = jp.structured.relaxed_cost(structure, kept)
    assert everything.weights > of_kernels.weights and everything.flops == of_kernels.flops


def test_under_vmap_a_cost_a_seed():
    params = weights(a=(4, 8), b=(8, 2))
    structure = jp.analyze(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones((1, 4)))
    gates = jax.random.uniform(jax.random.key(0), (3, 8))
    flops = jax.vmap(lambda f: jp.structured.relaxed_cost(structure, {"a": f}).flops)(gates)
    np.testing.assert_allclose(flops, 2 * 6 * gates.sum(1), rtol=1e-6)


def test_bad_input():
    params = weights(a=(4, 8), b=(8, 2))
    structure = jp.analyze(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones((1, 4)))
    with pytest.raises(ValueError, match="no group 'x'; the groups are 'a'"):
        jp.structured.relaxed_cost(structure, {"x": jnp.ones(8)})
