"""Compacted networks compute what masked ones do, and are really smaller."""

import io
import os
import subprocess
import sys
import textwrap
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

import jaxprune as jp
from jaxprune.flops import count_flops
from tests.coupling.networks import BATCH, NETWORKS, Residual, built
from tests.coupling.test_analyze import weights
from tests.coupling.test_stated import raised


def some(structure, seed=0, share=0.5):
    """Random neurons of each group, at least one."""
    rng = np.random.default_rng(seed)
    sizes = {name: group.size for name, group in structure.groups.items()}
    return {name: rng.permutation(n) < max(int(share * n), 1) for name, n in sizes.items()}


def both(fn, structure, variables, kept, *args):
    """The outputs of the masked and of the compacted network, in one program."""
    masks, small = jp.group_masks(structure, kept), jp.compact(structure, variables, kept)
    f = lambda v, p: (fn(jp.apply_masks(v, masks), *args), small.fn(p, *args))
    return jax.jit(f)(variables, small.params)


@pytest.mark.parametrize("name", NETWORKS)
def test_compacted_is_masked(name):
    fn = NETWORKS[name].module.apply
    variables, x = built(name)
    structure = jp.analyze(fn, variables, x)
    kept = some(structure)
    masked, compacted = both(fn, structure, variables, kept, x)
    if NETWORKS[name].exact:
        np.testing.assert_allclose(compacted, masked, rtol=1e-4, atol=1e-5)
    else:  # as `structure.inexact` says
        assert float(abs(compacted - masked).max()) > 1e-3
    small = jp.compact(structure, variables, kept)
    assert jp.cost(structure, kept).weights == sum(w.size for w in jax.tree.leaves(small.params))
    flops = count_flops(small.fn, small.params, x)
    assert jp.cost(structure, kept).flops == sum(flops.leaves.values()) + flops.other


def test_the_small_function_is_analysed_like_the_large_one():
    fn = NETWORKS["batch norm"].module.apply
    variables, x = built("batch norm")
    structure = jp.analyze(fn, variables, x)
    kept = some(structure)
    small = jp.compact(structure, variables, kept)
    again = jp.analyze(small.fn, small.params, x)
    assert {name: group.members for name, group in again.groups.items()} == {
        name: group.members for name, group in structure.groups.items()
    }
    assert [g.size for g in again.groups.values()] == [int(own.sum()) for own in kept.values()]


# --- random networks ------------------------------------------------------------------------------


KINDS = ["dense", "act", "residual", "concat", "swap", "reshape", "conv", "grouped", "norm", "gate"]


def random_network(seed):
    """A random function of a few of many kinds of steps, its params and an input."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice(KINDS, size=rng.integers(4, 9))
    params = {}

    def fn(p, x):
        def w(*shape):
            name = f"w{len(used)}"
            used.append(name)
            if p is None:
                params[name] = np.float32(rng.normal(size=shape) / np.sqrt(shape[-2]))
            return (params if p is None else p)[name]

        used: list = []
        conv = lambda h, k, groups=1: jax.lax.conv_general_dilated(
            h, k, (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"), feature_group_count=groups
        )
        h = x @ w(x.shape[-1], 8)
        for kind in kinds:
            n = h.shape[-1]
            if kind == "dense":
                h = h @ w(n, 12)
            elif kind == "act":
                h = jax.nn.softplus(h)
            elif kind == "residual":
                h = h + jnp.tanh(h @ w(n, 6)) @ w(6, n)
            elif kind == "concat":
                h = jnp.concatenate([h, h @ w(n, 4)], -1)
            elif kind == "swap":  # two halves exchanged, and multiplied into a third
                a, b = jnp.split(h, 2, -1)
                h = jnp.concatenate([b, a, a * b], -1)[..., : 2 * (n // 2)]
            elif kind == "reshape":
                parts = h.reshape(*h.shape[:-1], 2, n // 2)
                h = parts.swapaxes(-1, -2).reshape(h.shape)
            elif kind == "conv":
                h = conv(h, w(3, n, 8))
            elif kind == "grouped":
                h = conv(h, w(3, n // 2, 8), 2)
            elif kind == "norm":
                mean, square = h.mean(-1, keepdims=True), (h * h).mean(-1, keepdims=True)
                h = (h - mean) * jax.lax.rsqrt(square - mean**2 + 1) * w(1, n)[None]
            else:
                h = h * jax.nn.sigmoid(h.mean(1) @ w(n, 5) @ w(5, n))[:, None]
        return h.reshape(len(h), -1) @ w(h.shape[1] * h.shape[2], 3)

    x = jnp.asarray(rng.normal(size=(2, 4, 3)), jnp.float32)
    jax.eval_shape(lambda x: fn(None, x), x)
    return fn, params, x


@pytest.mark.parametrize("seed", range(10))
def test_random_networks(seed):
    fn, params, x = random_network(seed)
    structure = jp.analyze(fn, params, x)
    assert structure.groups and not structure.unknown
    masked, compacted = both(fn, structure, params, some(structure, seed), x)
    if not structure.inexact:
        scale = float(abs(masked).max()) + 1e-3
        np.testing.assert_allclose(compacted / scale, masked / scale, atol=2e-5)


# --- what the small function can do ---------------------------------------------------------------


class Case(NamedTuple):
    fn: Any
    structure: Any
    variables: Any
    x: Any
    kept: Any
    small: Any


@pytest.fixture(scope="module")
def residual():
    """A residual network with batch norm, half pruned."""
    fn = NETWORKS["batch norm"].module.apply
    variables, x = built("batch norm")
    structure = jp.analyze(fn, variables, x)
    kept = some(structure)
    return Case(fn, structure, variables, x, kept, jp.compact(structure, variables, kept))


def test_another_batch_size(residual):
    small, x = residual.small, residual.x
    np.testing.assert_allclose(
        small.fn(small.params, x[:1]), small.fn(small.params, x)[:1], rtol=1e-5, atol=1e-5
    )


def test_gradients_are_those_of_the_masked_network(residual):
    fn, structure, variables, x, kept, small = residual
    masks = jp.group_masks(structure, kept)
    loss = lambda f: lambda p: (f(p, x) ** 2).sum()
    masked = jax.jit(jax.grad(loss(lambda v, x: fn(jp.apply_masks(v, masks), x))))(variables)
    own = jax.jit(jax.grad(loss(small.fn)))(small.params)
    wanted = jp.shrink(structure, masked, kept)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), own, wanted)


def test_another_function_of_the_params_trains_it(residual):
    """Train mode returns new running statistics, whose axes are pruned too."""
    _, structure, variables, x, kept, small = residual
    train = Residual(lambda: nn.BatchNorm(use_running_average=False))
    step = lambda v, x: train.apply(v, x, mutable=["batch_stats"])
    y, new = jp.replay(structure, kept, step)(small.params, x)
    masked, stats = step(jp.apply_masks(variables, jp.group_masks(structure, kept)), x)
    np.testing.assert_allclose(y, masked, rtol=1e-4, atol=1e-4)
    wanted = jp.shrink(structure, {**variables, **stats}, kept)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        new["batch_stats"],
        wanted["batch_stats"],
    )


@pytest.mark.parametrize("name", ["flattened", "lstm"])
def test_a_gradient_is_a_function_like_others(name):
    """The backward pass itself, with its pooling and loops reversed, on smaller arrays."""
    fn = NETWORKS[name].module.apply
    variables, x = built(name)
    structure = jp.analyze(fn, variables, x)
    kept = some(structure)
    grad = lambda v, x: jax.grad(lambda v: (fn(v, x) ** 2).sum())(v)
    small = jp.shrink(structure, variables, kept)
    masked = jp.apply_masks(variables, jp.group_masks(structure, kept))
    both = lambda s, m: (jp.replay(structure, kept, grad)(s, x), grad(m, x))
    own, large = jax.jit(both)(small, masked)
    wanted = jp.shrink(structure, large, kept)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), own, wanted)


def test_custom_derivatives_are_kept():
    @jax.custom_vjp
    def rounded(x):
        return jnp.round(x)

    rounded.defvjp(lambda x: (rounded(x), None), lambda _, g: (g,))  # straight through
    params = weights(a=(4, 6), b=(6, 2))
    x = jnp.ones((2, 4))
    fn = lambda p, x: jax.nn.relu(rounded(x @ p["a"])) @ p["b"]
    structure = jp.analyze(fn, params, x)
    kept = {"a": np.arange(6) < 4}
    small = jp.compact(structure, params, kept)
    slope = lambda f: jax.grad(lambda p: f(p, x).sum())
    own, wanted = slope(small.fn)(small.params), jp.shrink(structure, slope(fn)(params), kept)
    assert float(abs(own["a"]).max()) > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), own, wanted)
    # relu at zero has slope 0, where max(x, 0) has a half
    zeros = {"a": jnp.zeros((4, 4)), "b": jnp.ones((4, 2))}
    assert not slope(small.fn)(zeros)["a"].any()


def test_vmap_of_remat_of_scan():
    fn = NETWORKS["scan"].module.apply
    variables, x = built("scan")
    structure = jp.analyze(jax.checkpoint(fn), variables, x)
    small = jp.compact(structure, variables, some(structure))
    one = jax.jit(jax.vmap(small.fn, (None, 0)))(small.params, x[:, None])
    np.testing.assert_allclose(one[:, 0], small.fn(small.params, x), rtol=1e-4, atol=1e-5)


def test_moments_are_those_of_the_small_run():
    params = weights(a=(4, 6), b=(6, 2))
    fn = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]
    x, tx = jnp.ones((2, 4)), optax.adam(1e-2)
    structure = jp.analyze(fn, params, x)
    kept = {"a": np.arange(6) != 2}
    masked = jp.apply_masks(params, jp.group_masks(structure, kept))
    small = jp.compact(structure, masked, kept)

    def step(f, params, state):
        grads = jax.grad(lambda p: (f(p, x) ** 2).sum())(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    large, state = step(fn, masked, tx.init(masked))
    own = step(small.fn, small.params, tx.init(small.params))
    shrunk = jp.shrink(structure, (large, state), kept)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), own, shrunk)


def test_sliceable_inputs_are_given_sliced():
    params = weights(a=(4, 6), b=(6, 4))
    fn = lambda p, x: (x + jnp.tanh(x @ p["a"]) @ p["b"]) @ jnp.ones((4, 1))
    x = jax.random.normal(jax.random.key(1), (2, 4))
    structure = jp.analyze(fn, params, x, sliceable_inputs=[("0", 1)])
    kept = {"a[0]": np.array([True, False, True, True])}
    small = jp.compact(structure, params, kept)
    wanted = fn(jp.apply_masks(params, jp.group_masks(structure, kept)), x.at[:, 1].set(0))
    for n in (2, 1):
        np.testing.assert_allclose(
            small.fn(small.params, x[:n, kept["a[0]"]]), wanted[:n], rtol=1e-5, atol=1e-6
        )


def test_constants_are_sliced():
    table = jnp.arange(6.0)
    params = weights(a=(4, 6), b=(6, 2))
    fn = lambda p, x: (x @ p["a"] + table[None]) @ p["b"]
    structure = jp.analyze(fn, params, jnp.ones((2, 4)))
    masked, compacted = both(fn, structure, params, {"a": np.arange(6) > 2}, jnp.ones((2, 4)))
    np.testing.assert_allclose(compacted, masked, rtol=1e-5)


def test_export(residual):
    small, x = residual.small, residual.x
    exported = export.export(jax.jit(small.fn))(small.params, x)
    np.testing.assert_allclose(
        exported.call(small.params, x), small.fn(small.params, x), rtol=1e-5, atol=1e-5
    )


def test_a_fresh_process_loads_it(tmp_path):
    """From the small arrays and `kept` alone: the large arrays are only shapes there."""
    params = weights(a=(4, 6), b=(6, 2))
    fn = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]
    structure = jp.analyze(fn, params, jnp.ones((2, 4)))
    kept = some(structure)
    small = jp.compact(structure, params, kept)
    np.savez(tmp_path / "small.npz", **small.params)
    np.savez(tmp_path / "kept.npz", **kept)
    program = textwrap.dedent("""
        import sys, jax, numpy as np, jax.numpy as jnp, jaxprune as jp
        fn = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]
        shape = lambda *n: jax.ShapeDtypeStruct(n, jnp.float32)
        structure = jp.analyze(fn, {"a": shape(4, 6), "b": shape(6, 2)}, shape(2, 4))
        small_fn = jp.replay(structure, dict(np.load("kept.npz")))
        y = small_fn(dict(np.load("small.npz")), jnp.ones((2, 4)))
        np.save(sys.stdout.buffer, y)
    """)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(jp.__file__))},
        capture_output=True,
        check=True,
    )
    y = np.load(io.BytesIO(done.stdout))
    np.testing.assert_allclose(y, small.fn(small.params, jnp.ones((2, 4))), rtol=1e-5)


# --- bad input ------------------------------------------------------------------------------------


def test_bad_input(residual):
    _, structure, variables, x, kept, small = residual
    said = raised(lambda: small.fn(variables, x))
    assert "takes the small params: " in said and "shrink(structure, params, kept)" in said
    assert "a tree like those" in raised(lambda: small.fn({"a": x}, x))
    other = Residual(BATCH).init(jax.random.key(0), jnp.ones((1, 8, 8, 4)))
    assert "Conv_0/kernel' has shape (3, 3, 4, 8), and had (3, 3, 3, 8)" in raised(
        lambda: jp.compact(structure, other, kept)
    )
    assert "nothing in this tree is like the params" in raised(
        lambda: jp.shrink(structure, {"w": x}, kept)
    )
    traced = lambda own: jp.compact(structure, variables, {"params/Conv_0": own})
    said = raised(lambda: jax.jit(lambda own: traced(own).params)(jnp.ones(8, bool)), TypeError)
    assert "pick and compact outside of jit" in said


def test_a_function_that_needs_what_was_pruned(residual):
    _, structure, _, x, kept, small = residual
    ordered = lambda v, x: jnp.sort(v["params"]["Conv_0"]["kernel"], -1)
    said = raised(lambda: jp.replay(structure, kept, ordered)(small.params, x))
    assert "can't do without the neurons that were pruned from params/Conv_0/kernel[3]" in said
    assert "which is sorted" in said
