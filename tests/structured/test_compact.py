"""Compacted networks compute what masked ones do, and are really smaller."""

import json
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
from flax import nnx
from jax import export

import jaxprune as jp
from jaxprune.programs.flops import count_flops
from tests.coupling.networks import BATCH, NETWORKS, Residual, built
from tests.coupling.test_analyze import weights
from tests.coupling.test_stated import raised
from tests.quick import quick


def some(structure, seed=0, share=0.5):
    """Random neurons of each group, at least one."""
    rng = np.random.default_rng(seed)
    sizes = {name: group.size for name, group in structure.groups.items()}
    return {name: rng.permutation(n) < max(int(share * n), 1) for name, n in sizes.items()}


def both(fn, structure, variables, kept, *args):
    """The outputs of the masked and of the compacted network, in one program."""
    masks, small = jp.structured.masks(structure, kept), jp.compact(structure, variables, kept)
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
    assert jp.structured.cost(structure, kept).weights == sum(
        w.size for w in jax.tree.leaves(small.params)
    )
    flops = count_flops(small.fn, small.params, x)
    assert jp.structured.cost(structure, kept).flops == sum(flops.leaves.values()) + flops.other


def test_the_small_function_is_analyzed_like_the_large_one():
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


@pytest.mark.full
def test_of_nnx():
    """Batch norm, grouped convolution, attention, and two branches, of which one goes."""

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 6, (3,), rngs=rngs)
            self.norm = nnx.BatchNorm(6, use_running_average=True, rngs=rngs)
            self.grouped = nnx.Conv(6, 6, (3,), feature_group_count=3, rngs=rngs)
            self.attend = nnx.MultiHeadAttention(
                2, 6, qkv_features=8, decode=False, deterministic=True, rngs=rngs
            )
            self.wide, self.back = nnx.Linear(6, 5, rngs=rngs), nnx.Linear(5, 6, rngs=rngs)
            self.out = nnx.Linear(6, 2, rngs=rngs)

        def __call__(self, x):
            x = self.conv(x)
            x = x + self.attend(nnx.relu(self.norm(x)))
            x = x + self.back(nnx.gelu(self.wide(x)))
            return self.out(nnx.relu(self.grouped(x)).mean(1))

    graphdef, state = nnx.split(Net(nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(0), (2, 4, 3))
    fn = lambda state, x: nnx.merge(graphdef, state)(x)
    structure = jp.analyze(fn, state, x)
    kept = some(structure, share=0.7)
    for removal in (
        kept,
        jp.structured.remove_emptied(structure, {**kept, "wide": np.zeros(5, bool)}),
    ):
        masked, compacted = both(fn, structure, state, removal, x)
        np.testing.assert_allclose(compacted, masked, rtol=1e-4, atol=1e-5)
    small = jp.compact(structure, state, removal)
    assert small.params["back"]["kernel"].get_value() is None


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


@pytest.mark.full
def test_another_batch_size(residual):
    small, x = residual.small, residual.x
    np.testing.assert_allclose(
        small.fn(small.params, x[:1]), small.fn(small.params, x)[:1], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    "name", quick(["flattened", "group norm", "grouped queries", "fused heads", "scan", "experts"])
)
def test_a_batch_of_symbolic_size(name):
    """Exported once, it takes any batch; of tokens any length too."""
    fn, (variables, x) = NETWORKS[name].module.apply, built(name)
    structure = jp.analyze(fn, variables, x)
    kept = some(structure)
    small = jp.compact(structure, variables, kept)
    sizes = "b, t" if NETWORKS[name].table else ", ".join(["b", *map(str, x.shape[1:])])
    shape = jax.ShapeDtypeStruct(export.symbolic_shape(sizes), x.dtype)
    exported = export.export(jax.jit(small.fn))(small.params, shape)
    larger = jnp.concatenate([x, x[:1]])
    larger = larger[:, :-1] if NETWORKS[name].table else larger
    masked = jp.apply_masks(variables, jp.structured.masks(structure, kept))
    np.testing.assert_allclose(
        exported.call(small.params, larger), jax.jit(fn)(masked, larger), rtol=1e-4, atol=1e-5
    )


def test_a_scan_over_a_batch_of_symbolic_size():
    """`lax.map` takes the examples one after the other: as many turns as the batch has."""
    params = {"a": jnp.arange(40.0).reshape(5, 8) / 40, "b": jnp.ones((8, 3))}
    fn = lambda p, x: jnp.tanh(jax.lax.map(lambda row: row @ p["a"], x)) @ p["b"]
    structure = jp.analyze(fn, params, jnp.ones((2, 5)))
    kept = {"a": np.arange(8) % 2 == 0}
    small = jp.compact(structure, params, kept)
    shape = jax.ShapeDtypeStruct(export.symbolic_shape("b, 5"), jnp.float32)
    exported = export.export(jax.jit(small.fn))(small.params, shape)
    x = jnp.arange(15.0).reshape(3, 5)
    masked = jp.apply_masks(params, jp.structured.masks(structure, kept))
    np.testing.assert_allclose(exported.call(small.params, x), fn(masked, x), rtol=1e-5)


def test_costs_are_counted_on_a_batch_of_known_size():
    shape = jax.ShapeDtypeStruct(export.symbolic_shape("b, 5"), jnp.float32)
    params = {"a": jnp.ones((5, 8)), "b": jnp.ones((8, 3))}
    fn = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]
    structure = jp.analyze(fn, params, shape)
    scores = jp.structured.per_group(structure)(params)
    for f in (
        lambda: jp.pick(structure, scores, flops=0.5),
        lambda: jp.count_flops(fn, params, shape),
    ):
        with pytest.raises(ValueError, match="Count, analyze and pick on an example batch"):
            f()


@pytest.mark.full
def test_training_and_removal_with_a_batch_of_symbolic_size(residual):
    """Statistics of a batch divide by its size, and a branch that goes is gone for any."""
    _, structure, variables, x, kept, small = residual
    train = Residual(lambda: nn.BatchNorm(use_running_average=False))
    step = jp.structured.replay(
        structure, kept, lambda v, x: train.apply(v, x, mutable=["batch_stats"])
    )
    removal = jp.structured.remove_emptied(structure, {"params/Conv_1": np.zeros(4, bool)})
    shorter = jp.compact(structure, variables, removal)
    shape = jax.ShapeDtypeStruct(export.symbolic_shape("b, 8, 8, 3"), x.dtype)
    for f, params in ((step, small.params), (shorter.fn, shorter.params)):
        exported = export.export(jax.jit(f))(params, shape)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
            exported.call(params, x[:1]),
            f(params, x[:1]),
        )


def test_gradients_are_those_of_the_masked_network(residual):
    fn, structure, variables, x, kept, small = residual
    masks = jp.structured.masks(structure, kept)
    loss = lambda f: lambda p: (f(p, x) ** 2).sum()
    masked = jax.jit(jax.grad(loss(lambda v, x: fn(jp.apply_masks(v, masks), x))))(variables)
    own = jax.jit(jax.grad(loss(small.fn)))(small.params)
    wanted = jp.structured.shrink(structure, masked, kept)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), own, wanted)


@pytest.mark.full
def test_another_function_of_the_params_trains_it(residual):
    """Train mode returns new running statistics, whose axes are pruned too."""
    _, structure, variables, x, kept, small = residual
    train = Residual(lambda: nn.BatchNorm(use_running_average=False))
    step = lambda v, x: train.apply(v, x, mutable=["batch_stats"])
    y, new = jp.structured.replay(structure, kept, step)(small.params, x)
    masked, stats = step(jp.apply_masks(variables, jp.structured.masks(structure, kept)), x)
    np.testing.assert_allclose(y, masked, rtol=1e-4, atol=1e-4)
    wanted = jp.structured.shrink(structure, {**variables, **stats}, kept)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        new["batch_stats"],
        wanted["batch_stats"],
    )


def test_a_training_function_with_dropout():
    """Random numbers are drawn for the small arrays; what is not dropped is as in the masked."""
    params, x = weights(a=(4, 6), b=(6, 2)), jnp.ones((64, 4))
    hidden = lambda p, x: jnp.tanh(x @ p["a"])

    def train(p, x, key):
        h = hidden(p, x)
        kept = jax.random.bernoulli(key, 0.75, h.shape)
        h = jnp.where(kept, h / 0.75, 0)
        return h @ p["b"], h

    structure = jp.analyze(lambda p, x: hidden(p, x) @ p["b"], params, x)
    kept = {"a": np.arange(6) % 2 == 0}
    small = jp.structured.shrink(structure, params, kept)
    y, h = jp.structured.replay(structure, kept, train)(small, x, jax.random.key(1))
    np.testing.assert_allclose(y, h @ small["b"], rtol=1e-5)
    dropped = np.asarray(h) == 0
    assert 0.15 < dropped.mean() < 0.35
    wanted = np.where(dropped, 0, hidden(params, x)[:, kept["a"]] / 0.75)
    np.testing.assert_allclose(h, wanted, rtol=1e-5)


@pytest.mark.parametrize("name", ["flattened", "lstm", "experts"])
def test_a_gradient_is_a_function_like_others(name):
    """The backward pass itself, with its pooling and loops reversed, on smaller arrays."""
    fn = NETWORKS[name].module.apply
    variables, x = built(name)
    structure = jp.analyze(fn, variables, x)
    kept = some(structure)
    grad = lambda v, x: jax.grad(lambda v: (fn(v, x) ** 2).sum())(v)
    small = jp.structured.shrink(structure, variables, kept)
    masked = jp.apply_masks(variables, jp.structured.masks(structure, kept))
    both = lambda s, m: (jp.structured.replay(structure, kept, grad)(s, x), grad(m, x))
    own, large = jax.jit(both)(small, masked)
    wanted = jp.structured.shrink(structure, large, kept)
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
    own, wanted = (
        slope(small.fn)(small.params),
        jp.structured.shrink(structure, slope(fn)(params), kept),
    )
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


@pytest.mark.full
def test_moments_are_those_of_the_small_run():
    params = weights(a=(4, 6), b=(6, 2))
    fn = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]
    x, tx = jnp.ones((2, 4)), optax.adam(1e-2)
    structure = jp.analyze(fn, params, x)
    kept = {"a": np.arange(6) != 2}
    masked = jp.apply_masks(params, jp.structured.masks(structure, kept))
    small = jp.compact(structure, masked, kept)

    def step(f, params, state):
        grads = jax.grad(lambda p: (f(p, x) ** 2).sum())(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    large, state = step(fn, masked, tx.init(masked))
    own = step(small.fn, small.params, tx.init(small.params))
    shrunk = jp.structured.shrink(structure, (large, state), kept)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), own, shrunk)


def test_every_part_of_a_tree_that_is_like_the_params_is_shrunk(residual):
    """With batch norm, variables are analyzed: params alone, their moments, holes of `masked`."""
    _, structure, variables, _, kept, small = residual
    params, wanted = variables["params"], jax.tree.map(jnp.shape, small.params)
    shapes = lambda tree: jax.tree.map(jnp.shape, jp.structured.shrink(structure, tree, kept))
    assert shapes(params) == wanted["params"]
    assert shapes(variables["batch_stats"]) == wanted["batch_stats"]
    assert shapes({"new": variables, "step": jnp.ones(8)}) == {"new": wanted, "step": (8,)}
    assert shapes(jax.eval_shape(lambda: params)) == wanted["params"]
    (adam, _), _ = shapes((optax.adam(0.1).init(params), optax.EmptyState()))
    assert adam.mu == adam.nu == wanted["params"] and adam.count == ()
    kernels = jax.tree.map(lambda w: w.ndim > 1, params)
    part = shapes(optax.masked(optax.trace(0.9), kernels).init(params)).inner_state.trace
    assert part["Conv_1"] == wanted["params"]["Conv_1"] and not jax.tree.leaves(part["BatchNorm_0"])


def test_moments_of_nnx_params_are_shrunk_without_the_statistics():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first, self.last = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)
            self.norm = nnx.BatchNorm(6, rngs=rngs)

        def __call__(self, x):
            return self.last(nnx.relu(self.norm(self.first(x))))

    model = Net(nnx.Rngs(0))
    model.eval()
    graphdef, state = nnx.split(model)
    structure = jp.analyze(lambda s, x: nnx.merge(graphdef, s)(x), state, jnp.ones((2, 4)))
    moments = optax.adam(0.1).init(nnx.state(model, nnx.Param))
    mu = jp.structured.shrink(structure, moments, {"first": np.arange(6) < 2})[0].mu
    assert mu["first"]["kernel"].get_value().shape == (4, 2)
    assert mu["norm"]["scale"].get_value().shape == (2,)


def test_sliceable_inputs_are_given_sliced():
    params = weights(a=(4, 6), b=(6, 4))
    fn = lambda p, x: (x + jnp.tanh(x @ p["a"]) @ p["b"]) @ jnp.ones((4, 1))
    x = jax.random.normal(jax.random.key(1), (2, 4))
    structure = jp.analyze(fn, params, x, sliceable_inputs=[("0", 1)])
    kept = {"a.axis0": np.array([True, False, True, True])}
    small = jp.compact(structure, params, kept)
    wanted = fn(jp.apply_masks(params, jp.structured.masks(structure, kept)), x.at[:, 1].set(0))
    for n in (2, 1):
        np.testing.assert_allclose(
            small.fn(small.params, x[:n, kept["a.axis0"]]), wanted[:n], rtol=1e-5, atol=1e-6
        )


def test_constants_are_sliced():
    table = jnp.arange(6.0)
    params = weights(a=(4, 6), b=(6, 2))
    fn = lambda p, x: (x @ p["a"] + table[None]) @ p["b"]
    structure = jp.analyze(fn, params, jnp.ones((2, 4)))
    masked, compacted = both(fn, structure, params, {"a": np.arange(6) > 2}, jnp.ones((2, 4)))
    np.testing.assert_allclose(compacted, masked, rtol=1e-5)


def test_a_fresh_process_runs_it(tmp_path):
    """Exported, without this library; replayed, from the small arrays and what was kept."""
    params = weights(a=(4, 6), b=(6, 2), c=(2, 3), d=(3, 2))
    branch = lambda p, y: jnp.tanh(y @ p["c"]) @ p["d"]
    fn = lambda p, x: (lambda y: y + branch(p, y))(jnp.tanh(x @ p["a"]) @ p["b"])
    x = jnp.ones((2, 4))
    structure = jp.analyze(fn, params, x)
    removal = jp.structured.remove_emptied(structure, {**some(structure), "c": np.zeros(3, bool)})
    small = jp.compact(structure, params, removal)
    wanted = small.fn(small.params, x)
    shapes = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype), small.params)
    exported = export.export(jax.jit(small.fn))(shapes, jax.ShapeDtypeStruct((2, 4), x.dtype))
    (tmp_path / "small.bin").write_bytes(exported.serialize(vjp_order=1))
    left = {path: w for path, w in small.params.items() if w is not None}
    np.savez(tmp_path / "small.npz", **left)
    np.savez(tmp_path / "kept.npz", **removal.kept)
    (tmp_path / "removed.json").write_text(json.dumps(removal.removed))
    program = textwrap.dedent("""
        import json, pathlib, sys, jax, jax.export, jax.numpy as jnp, numpy as np
        small = {"c": None, "d": None, **np.load("small.npz")}
        exported = jax.export.deserialize(pathlib.Path("small.bin").read_bytes())
        exports = exported.call(small, jnp.ones((2, 4)))
        slopes = jax.grad(lambda p: exported.call(p, jnp.ones((2, 4))).sum())(small)
        assert "jaxprune" not in sys.modules

        import jaxprune as jp
        branch = lambda p, y: jnp.tanh(y @ p["c"]) @ p["d"]
        fn = lambda p, x: (lambda y: y + branch(p, y))(jnp.tanh(x @ p["a"]) @ p["b"])
        shape = lambda *n: jax.ShapeDtypeStruct(n, jnp.float32)
        full = {"a": shape(4, 6), "b": shape(6, 2), "c": shape(2, 3), "d": shape(3, 2)}
        structure = jp.analyze(fn, full, shape(2, 4))
        removed = tuple(json.loads(pathlib.Path("removed.json").read_text()))
        removal = jp.structured.Removal(dict(np.load("kept.npz")), removed)
        small_fn = jp.structured.replay(structure, removal)
        np.savez("results.npz", a=exports, b=small_fn(small, jnp.ones((2, 4))), g=slopes["a"])
    """)
    subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(jp.__file__))},
        check=True,
    )
    results = np.load(tmp_path / "results.npz")
    np.testing.assert_allclose(results["a"], wanted, rtol=1e-5)
    np.testing.assert_allclose(results["b"], wanted, rtol=1e-5)
    slopes = jax.grad(lambda p: small.fn(p, x).sum())(small.params)
    np.testing.assert_allclose(results["g"], slopes["a"], rtol=1e-5)


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
        lambda: jp.structured.shrink(structure, {"w": x}, kept)
    )
    said = raised(lambda: jp.compact(structure, variables["params"], kept))
    assert "'batch_stats/BatchNorm_0/mean', " in said and "are not there" in said
    sums = jax.tree.map(lambda w: w.sum(-1), variables["params"])  # adafactor's
    said = raised(lambda: jp.structured.shrink(structure, {"v_row": sums}, kept))
    assert "'BatchNorm_0/scale' has shape ()" not in said  # a single number is left as it is
    assert "'Conv_0/kernel' has shape (3, 3, 3) in it, and had (3, 3, 3, 8)" in said
    traced = lambda own: jp.compact(structure, variables, {"params/Conv_0": own})
    said = raised(lambda: jax.jit(lambda own: traced(own).params)(jnp.ones(8, bool)), TypeError)
    assert "pick and compact outside of jit" in said


def test_a_function_that_needs_what_was_pruned(residual):
    _, structure, _, x, kept, small = residual
    ordered = lambda v, x: jnp.sort(v["params"]["Conv_0"]["kernel"], -1)
    said = raised(lambda: jp.structured.replay(structure, kept, ordered)(small.params, x))
    assert "can't do without the neurons that were pruned from params/Conv_0/kernel[3]" in said
    assert "which is sorted" in said
