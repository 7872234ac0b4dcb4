"""The code itself on the small params: the same program, or an error that says where not."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxprune as jp
from tests.coupling.networks import NETWORKS, built
from tests.coupling.test_analyze import weights
from tests.coupling.test_stated import raised
from tests.structured.test_compact import both, some

X = jnp.ones((2, 4))


def analyzed(name):
    variables, x = built(name)
    structure = jp.analyze(NETWORKS[name].module.apply, variables, x)
    return structure, variables, x


@pytest.mark.parametrize("name", ["batch norm", "separable", "unet", "scan"])
def test_linen_layers_are_as_wide_as_their_kernels(name):
    structure, variables, x = analyzed(name)
    kept = some(structure)
    small, retraced = jp.compact(structure, variables, kept), jp.structured.retrace(structure, kept)
    assert retraced.differs == ()
    run = jax.jit(lambda p: (retraced.fn(p, x), small.fn(p, x)))
    np.testing.assert_array_equal(*run(small.params))


def test_numbers_that_follow_the_size_are_listed():
    structure, variables, x = analyzed("layer norm")
    kept = some(structure)
    small, retraced = jp.compact(structure, variables, kept), jp.structured.retrace(structure, kept)
    assert [text.split(" at ")[0] for text in retraced.differs] == ["div 8 -> 4", "div 4 -> 2"]
    assert all("normalization.py:" in text for text in retraced.differs)
    one, other = jax.jit(lambda p: (retraced.fn(p, x), small.fn(p, x)))(small.params)
    assert float(abs(one - other).max()) > 0.1

    params = weights(a=(4, 6), b=(6, 2))
    table = lambda p: jnp.asarray(np.linspace(0, 1, p["a"].shape[1], dtype=np.float32))[None]
    fn = lambda p, x: (x @ p["a"] * p["a"].shape[1] ** -0.5 + table(p)) @ p["b"]
    retraced = jp.structured.retrace(jp.analyze(fn, params, X), {"a": np.arange(6) < 4})
    assert len(retraced.differs) == 2
    assert any(
        text.startswith("mul 0.408248 -> 0.5 at test_retrace.py") for text in retraced.differs
    )
    assert "a constant of shape (6,)" in retraced.differs


def test_of_nnx():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 6, (3,), rngs=rngs)
            self.norm = nnx.BatchNorm(6, rngs=rngs, use_running_average=True)
            self.out = nnx.Linear(6, 2, rngs=rngs)

        def __call__(self, x):
            return self.out(nnx.relu(self.norm(self.conv(x))).mean(1))

    graphdef, state = nnx.split(Net(nnx.Rngs(0)))
    structure = jp.analyze(lambda s, x: nnx.merge(graphdef, s)(x), state, jnp.ones((2, 4, 3)))
    assert jp.structured.retrace(structure, some(structure)).differs == ()


def test_code_with_the_small_widths():
    class Net(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            w = self.param("w", nn.initializers.ones, (x.shape[-1], self.width))
            return nn.Dense(2)(jnp.tanh(x @ w))

    variables = Net(6).init(jax.random.key(0), X)
    structure = jp.analyze(Net(6).apply, variables, X)
    kept = {"params/w": np.arange(6) < 3}
    assert jp.structured.retrace(structure, kept, Net(3).apply).differs == ()
    said = raised(lambda: jp.structured.retrace(structure, kept))
    assert "something in it has the old sizes written down (ScopeParamShapeError: " in said
    assert "or take compact(...).fn, which replays" in said


def crossed(a, b):
    return a - b if a.shape[-1] > 4 else b - a


@pytest.mark.parametrize(
    ("activation", "fragment"),
    [
        (lambda h: h if h.shape[-1] > 4 else jnp.tanh(h), "it has tanh of shape (2, 3) where"),
        (lambda h: jnp.tanh(h) if h.shape[-1] > 4 else jnp.sin(h), "where there was tanh"),
        (lambda h: crossed(jnp.sin(h), jnp.tanh(h)), "it gives sub of shape (2, 3) other operands"),
        (lambda h: h.reshape(-1, 2, 3).sum(1).repeat(2, 1), "the old sizes written down"),
    ],
)
def test_code_that_reads_shapes(activation, fragment):
    params = weights(a=(4, 6), b=(6, 2))
    fn = lambda p, x: activation(x @ p["a"]) @ p["b"]
    structure = jp.analyze(fn, params, X)
    kept = {name: np.arange(group.size) % 2 == 0 for name, group in structure.groups.items()}
    assert fragment in raised(lambda: jp.structured.retrace(structure, kept))


def test_replay_does_not_see_shapes():
    params = weights(a=(4, 6), b=(6, 2))
    fn = lambda p, x: crossed(jnp.sin(x @ p["a"]), jnp.tanh(x @ p["a"])) @ p["b"]
    structure = jp.analyze(fn, params, X)
    masked, compacted = both(fn, structure, params, {"a": np.arange(6) < 3}, X)
    np.testing.assert_allclose(compacted, masked, rtol=1e-5)


def test_side_effects_and_removed_branches():
    params = weights(a=(4, 6), b=(6, 2))

    def fn(p, x):
        jax.debug.print("called")
        return x @ p["a"] @ p["b"]

    structure = jp.analyze(fn, params, X)
    said = raised(lambda: jp.structured.retrace(structure, {"a": np.arange(6) < 3}))
    assert "the function has side effects (" in said
    said = raised(lambda: jp.structured.retrace(structure, jp.structured.Removal({}, ())))
    assert "only `replay` knows the program that is left" in said
