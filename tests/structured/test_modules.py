"""Small `nnx` modules: their sizes, and what they compute."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxprune as jp
from tests.coupling.test_stated import raised
from tests.structured.test_compact import some


class Modules(nnx.Module):
    """A layer of each kind that notes its sizes."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(7, 8, rngs=rngs)
        self.conv = nnx.Conv(8, 6, (3,), rngs=rngs)
        self.depthwise = nnx.Conv(6, 6, (3,), feature_group_count=6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, use_running_average=True, rngs=rngs)
        self.grouped = nnx.Conv(6, 12, (3,), feature_group_count=3, rngs=rngs)
        self.groups = nnx.GroupNorm(12, num_groups=3, rngs=rngs)
        self.up = nnx.ConvTranspose(12, 5, (2,), rngs=rngs)
        self.attend = nnx.MultiHeadAttention(
            4, 5, qkv_features=12, out_features=9, decode=False, deterministic=True, rngs=rngs
        )
        self.general = nnx.LinearGeneral(9, (2, 3), rngs=rngs)
        self.einsum = nnx.Einsum("btcd,cde->bte", (2, 3, 4), (4,), rngs=rngs)
        self.cell = nnx.RNN(nnx.GRUCell(4, 5, rngs=rngs))
        self.out = nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, tokens):
        x = self.norm(self.depthwise(nnx.relu(self.conv(self.embed(tokens)))))
        x = self.up(nnx.relu(self.groups(self.grouped(nnx.relu(x)))))
        x = self.einsum(nnx.relu(self.general(nnx.relu(self.attend(x)))))
        return self.out(self.cell(x))


@pytest.mark.full
def test_a_module_of_nnx_comes_back():
    """Its layers note the small sizes, it runs alone, and in training as a small module does."""
    model, x = Modules(nnx.Rngs(0)), jnp.arange(8).reshape(2, 4) % 7
    graphdef, state = nnx.split(model)
    fn = lambda state, x: nnx.merge(graphdef, state)(x)
    structure = jp.analyze(fn, state, x)
    kept = some(structure, share=0.7)
    # flax's attention wants as many dimensions of values as of queries, and roots and means of them
    # follow sizes
    whole = ("attend/query.dims", "attend/value", "grouped")
    kept |= {name: np.ones_like(kept[name]) for name in whole}
    small, differs = jp.structured.compact_module(structure, model, kept)
    assert differs == () and type(small) is Modules
    masked = jax.jit(fn)(jp.apply_masks(state, jp.structured.masks(structure, kept)), x)
    found = nnx.jit(lambda model, x: model(x))(small, x)
    np.testing.assert_allclose(found, masked, rtol=1e-4, atol=1e-5)
    assert small.attend.num_heads == 2 and small.attend.qkv_features == 6
    assert small.grouped.feature_group_count == small.groups.num_groups == 2
    assert small.depthwise.feature_group_count == small.conv.out_features
    assert small.cell.cell.hidden_features == small.out.in_features == 3
    sizes = {path: x.shape for path, x in jax.tree.leaves_with_path(nnx.state(small, nnx.Param))}
    optimizer = nnx.Optimizer(small, optax.adam(0.1), wrt=nnx.Param)
    optimizer.update(small, nnx.grad(lambda model: (model(x) ** 2).mean())(small))
    assert {
        path: x.shape for path, x in jax.tree.leaves_with_path(nnx.state(small, nnx.Param))
    } == (sizes)
    assert model.attend.num_heads == 4  # the model stays as it is


@pytest.mark.full
def test_heads_of_keys_are_counted_apart_from_those_of_queries():
    """Two heads of queries read one of keys, and go with it."""
    model = nnx.MultiHeadAttention(
        6, 4, qkv_features=12, num_kv_heads=3, decode=False, deterministic=True, rngs=nnx.Rngs(0)
    )
    (graphdef, state), x = nnx.split(model), jnp.ones((2, 3, 4))
    fn = lambda state, x: nnx.merge(graphdef, state)(x)
    structure = jp.analyze(fn, state, x)
    kept = {"query.heads": np.array([True, False, True])}
    small, differs = jp.structured.compact_module(structure, model, kept)
    assert (small.num_heads, small.num_kv_heads, small.qkv_features) == (4, 2, 8) and not differs
    masked = fn(jp.apply_masks(state, jp.structured.masks(structure, kept)), x)
    np.testing.assert_allclose(small(x), masked, rtol=1e-4, atol=1e-6)


def test_numbers_that_differ_in_a_module_are_told():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first, self.last = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)
            self.norm = nnx.LayerNorm(6, rngs=rngs)

        def __call__(self, x):
            return self.last(self.norm(self.first(x)))

    model = Net(nnx.Rngs(0))
    graphdef, state = nnx.split(model)
    structure = jp.analyze(lambda s, x: nnx.merge(graphdef, s)(x), state, jnp.ones((2, 4)))
    _, differs = jp.structured.compact_module(structure, model, {"first": np.arange(6) < 3})
    assert differs and all(own.startswith("div 6 -> 3 at ") for own in differs)


def test_sizes_of_modules_of_your_own_are_set():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.width = 6
            self.first, self.last = nnx.Linear(4, 12, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)

        def __call__(self, x, scale=1.0):
            x = scale * self.first(x).reshape(-1, 2, self.width)
            return self.last(nnx.relu(x).sum(1))

    model = Net(nnx.Rngs(0))
    graphdef, state = nnx.split(model)
    x = jax.random.normal(jax.random.key(0), (3, 4))
    fn = lambda state, x: nnx.merge(graphdef, state)(x, scale=2.0)
    structure = jp.analyze(fn, state, x)
    kept = {"first.axis1.part1": np.arange(6) < 2}
    said = raised(lambda: jp.structured.compact_module(structure, model, kept))
    assert "has the old sizes written down" in said and "with resize=" in said
    halved = lambda path, module: setattr(module, "width", 2) if path == "" else None
    _, differs = jp.structured.compact_module(structure, model, kept, resize=halved)
    assert [own.split(" at ")[0] for own in differs] == ["mul 2 -> 1"]  # it was called otherwise
    small = jp.structured.compact_module(
        structure, model, kept, resize=halved, call=lambda model, x: model(x, scale=2.0)
    ).module
    masked = fn(jp.apply_masks(state, jp.structured.masks(structure, kept)), x)
    np.testing.assert_allclose(small(x, scale=2.0), masked, rtol=1e-5)
