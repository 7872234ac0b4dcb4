"""One registered rule serves every reader of programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Primitive
from jax.interpreters import mlir

import jaxprune as jp
from jaxprune.programs.primitives import RULES, Side
from jaxprune.programs.zero_flow import follow
from tests.coupling.test_analyze import weights

X = jax.random.normal(jax.random.key(0), (3, 4))
PARAMS = weights(a=(4, 6), b=(6, 2))
KEPT = {"a": np.arange(6) % 2 == 0}


@pytest.fixture
def primitive():
    """A function that makes a primitive from numpy-like code; no reader knows it."""
    names = []

    def make(name, f):
        made = Primitive(name)
        made.def_impl(jax.jit(f))
        shape = lambda *xs: jax.core.ShapedArray(jax.eval_shape(f, *xs).shape, xs[0].dtype)
        made.def_abstract_eval(shape)
        mlir.register_lowering(made, mlir.lower_fun(f, multiple_results=False))
        names.append(name)
        return made.bind

    yield make
    for name in names:
        RULES.pop(name, None)


def compacted(fn):
    """The analysis, and the compacted and the masked network's results."""
    structure = jp.analyze(fn, PARAMS, X)
    small = jp.compact(structure, PARAMS, KEPT)
    masked = jp.apply_masks(PARAMS, jp.structured.masks(structure, KEPT))
    np.testing.assert_allclose(small.fn(small.params, X), fn(masked, X), rtol=1e-6)
    return structure, small


def test_one_line_for_an_elementwise_primitive(primitive):
    double = primitive("double", lambda x: 2 * x)
    fn = lambda p, x: jax.nn.softmax(double(x @ p["a"]), 0) @ double(p["b"])
    moment = lambda m, g: double(m) + g
    assert not jp.analyze(fn, PARAMS, X).groups
    assert jp.layouts(fn, PARAMS, X)["b"].why == "no product reads it, but double"
    assert follow(moment, [0, 0], X, X).zero == [None]

    jp.structured.register_rule("double", elementwise=lambda params, x: 2 * x)
    structure, _ = compacted(fn)
    assert list(structure.groups) == ["a"] and not structure.unknown
    assert jp.layouts(fn, PARAMS, X)["b"].inputs == (0,)
    assert follow(moment, [0, 0], X, X).zero == [0]
    assert jp.count_flops(fn, PARAMS, X).leaves == {"a": 2 * 3 * 4 * 6, "b": 2 * 3 * 6 * 2}


@pytest.mark.parametrize(("shift", "is_zero"), [(0, True), (1, False)])
def test_zeros_follow_from_the_numbers(primitive, shift, is_zero):
    """A neuron that is summed over, of f(0) = 0 and of f(0) = 1; and a block without weights."""
    bend = primitive("bend", lambda x: x * jnp.abs(x) + shift)
    numbers = lambda params, x: x * np.abs(x) + np.asarray(shift, x.dtype)
    jp.structured.register_rule("bend", elementwise=numbers)
    fn = lambda p, x: bend(x @ p["a"]).sum(-1)
    structure = jp.analyze(fn, PARAMS, X)
    assert bool(structure.inexact) != is_zero
    assert follow(bend, [0], X).zero == [0 if is_zero else None]
    around = lambda p, x: x.sum() + (bend(x @ p["a"]) @ p["b"]).sum()
    structure = jp.analyze(around, PARAMS, X)
    removal = jp.structured.remove_blocks(structure, ["a"])
    assert ("b" in removal.removed) == is_zero


@pytest.mark.parametrize("written", ["numbers", "sides"])
def test_a_product(primitive, written):
    times = primitive("times", lambda x, w: x @ w)

    def axes(reader, eqn, operands):
        (n, k), (other, m) = operands
        reader.unify(k, other)
        return [(n, m)]

    product = ([1], [0]) if written == "numbers" else (Side((1,)), Side((0,)))
    jp.structured.register_rule("times", axes, zeros="any", product=lambda eqn: product)
    fn = lambda p, x: times(jnp.exp(times(x, p["a"])), p["b"])
    plain = lambda p, x: jnp.exp(x @ p["a"]) @ p["b"]
    structure, small = compacted(fn)
    assert structure.groups == jp.analyze(plain, PARAMS, X).groups and not structure.inexact
    assert jp.layouts(fn, PARAMS, X) == jp.layouts(plain, PARAMS, X)
    for count in (jp.count_flops, lambda f, *args: jp.structured.cost(jp.analyze(f, *args))):
        assert count(fn, PARAMS, X) == count(plain, PARAMS, X)
    assert jp.structured.cost(structure, KEPT).flops == 3 * 2 * (4 * 3 + 3 * 2)
    assert jp.count_flops(small.fn, small.params, X).leaves == {"a": 3 * 2 * 12, "b": 3 * 2 * 6}


def test_flops_of_what_is_no_product(primitive):
    mixed = primitive("mixed", lambda x, w: jnp.tanh(x @ w) @ w.T)

    def axes(reader, eqn, operands):
        (n, k), (other, _) = operands
        reader.unify(k, other)
        return [(n, k)]

    flops = lambda eqn, inputs, outputs: (4, *inputs[0], inputs[1][1])
    jp.structured.register_rule("mixed", axes, flops=flops)
    fn = lambda p, x: mixed(x, p["a"])
    assert jp.count_flops(fn, PARAMS, X).leaves == {"a": 4 * 3 * 4 * 6, "b": 0}
    structure = jp.analyze(fn, PARAMS, X)
    assert jp.structured.cost(structure, {"a": np.arange(6) < 2}).flops == 4 * 3 * 4 * 2


def test_mistakes():
    register = jp.structured.register_rule
    with pytest.raises(ValueError, match="zeros is one of any, first, cases, each, all; got 'no'"):
        register("never", elementwise=lambda params, x: x, zeros="no")
    with pytest.raises(TypeError, match="product is a function; got 3"):
        register("never", lambda *args: [], product=3)
    assert "never" not in RULES
