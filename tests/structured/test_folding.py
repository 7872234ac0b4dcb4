"""Gates of groups: where they are folded in, what is left when they are 0, and bad input."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.structured.gates import gated
from tests.coupling.networks import NETWORKS, Residual, built
from tests.coupling.test_analyze import weights
from tests.coupling.test_stated import raised
from tests.quick import quick
from tests.structured import test_random_networks as parts
from tests.structured.test_compact import some


def analyzed(name):
    variables, x = built(name)
    return jp.analyze(NETWORKS[name].module.apply, variables, x), variables, x


def at(structure, name, at_readers=False):
    """The places that a group's gates multiply, without what all paths begin with."""
    places = gated(structure, at_readers)[name]
    return [f"{path.removeprefix('params/')}[{axis}]" for path, axis in places]


def half_open(structure, seed=0):
    """Gates in (0.2, 1)."""
    rng = np.random.default_rng(seed)
    sizes = {name: group.size for name, group in structure.groups.items()}
    return {name: jnp.asarray(rng.uniform(0.2, 1, n), jnp.float32) for name, n in sizes.items()}


# --- where ----------------------------------------------------------------------------------------


def test_the_norm_of_each_producer():
    structure, *_ = analyzed("batch norm")
    assert at(structure, "params/Conv_1") == ["BatchNorm_1/scale[0]", "BatchNorm_1/bias[0]"]
    # two layers add to the stream, and share its gates
    stream = [f"BatchNorm_{i}/{leaf}[0]" for i in (0, 2) for leaf in ("scale", "bias")]
    assert sorted(at(structure, "params/Conv_0")) == sorted(stream)


def test_kernel_and_bias_where_there_is_no_norm():
    structure, *_ = analyzed("concat")
    for i in range(3):
        assert at(structure, f"params/Conv_{i}") == [f"Conv_{i}/kernel[3]", f"Conv_{i}/bias[0]"]


def test_the_last_of_two_layers_of_the_same_channels():
    structure, *_ = analyzed("separable")  # a depthwise convolution has the channels of its input
    assert at(structure, "params/Conv_0") == ["Conv_1/kernel[3]", "Conv_1/bias[0]"]


def test_what_reads_where_f_of_0_is_not_0():
    structure, *_ = analyzed("mlp")  # softplus
    assert at(structure, "params/Dense_0") == ["Dense_1/kernel[0]"]


def test_pooling_of_zeros_is_zero():
    structure, *_ = analyzed("flattened")
    assert at(structure, "params/Conv_1") == ["Conv_1/kernel[3]", "Conv_1/bias[0]"]


def test_both_sides_of_a_norm_over_the_neurons():
    structure, *_ = analyzed("layer norm")
    own = ["Conv_1/kernel[3]", "LayerNorm_1/scale[0]", "LayerNorm_1/bias[0]"]
    assert sorted(at(structure, "params/Conv_1")) == sorted(own)


def test_inputs_are_gated_where_they_are_read():
    params = weights(a=(4, 6), b=(6, 2))
    fn = lambda p, x: jnp.maximum(x @ p["a"], 0) @ p["b"]
    structure = jp.analyze(fn, params, jnp.ones((2, 4)), sliceable_inputs=[("0", 1)])
    assert gated(structure) == {"a.axis0": (("a", 0),), "a.axis1": (("a", 1),)}


def test_a_kernel_that_reads_its_own_group_is_gated_on_one_side():
    params = weights(a=(4, 6), b=(6, 6), c=(6, 2))
    fn = lambda p, x: (lambda h: (h + jnp.tanh(h @ p["b"])) @ p["c"])(jnp.tanh(x @ p["a"]))
    structure = jp.analyze(fn, params, jnp.ones((2, 4)))
    assert gated(structure) == {"a": (("a", 1), ("b", 1))}


def test_at_readers_every_kernel_that_reads():
    structure, *_ = analyzed("batch norm")
    assert at(structure, "params/Conv_1", at_readers=True) == ["Conv_2/kernel[2]"]
    stream = at(structure, "params/Conv_0", at_readers=True)
    assert stream == ["Conv_1/kernel[2]", "Dense_0/kernel[0]"]
    structure, *_ = analyzed("layer norm")  # which reads, and is read
    both = ["Conv_1/kernel[3]", "Conv_2/kernel[2]"]
    assert sorted(at(structure, "params/Conv_1", at_readers=True)) == both


# --- what it computes -----------------------------------------------------------------------------


EXACT = [name for name in NETWORKS if NETWORKS[name].exact]
ALIKE = {"channels first", "grouped queries", "rotary"}  # to others, and slow to compile


def gated_and_cut(structure, variables, x, at_readers=False):
    """The outputs under gates of which some are 0, and of what is left when those neurons go."""
    kept, gates = some(structure), half_open(structure)
    apply = partial(jp.structured.apply_gates, structure, at_readers=at_readers)
    small = jp.compact(structure, apply(variables, gates), kept)
    closed = {n: jnp.where(kept[n], gates[n], 0.0) for n in gates}

    @jax.jit
    def both(variables, params):
        return structure.fn(apply(variables, closed), x), small.fn(params, x)

    found = both(variables, small.params)
    return [y / (float(abs(found[0]).max()) + 1e-3) for y in found]


@pytest.mark.parametrize("name", quick([name for name in EXACT if name not in ALIKE]))
@pytest.mark.parametrize("at_readers", quick([False, True]))
def test_folded_and_cut_is_gated_with_zeros(name, at_readers):
    gated_, sliced = gated_and_cut(*analyzed(name), at_readers)
    np.testing.assert_allclose(sliced, gated_, atol=2e-5)


@pytest.mark.parametrize(
    "steps",
    [
        (parts.convolution, parts.norm, parts.pooled),
        (parts.residual, parts.attention, parts.swap),
        (parts.recurrent, parts.excite, parts.scanned),
    ],
)
def test_so_it_is_whatever_a_network_is_made_of(steps):
    fn, params = parts.network([(step, 4) for step in steps])
    x = parts.input_of(0)
    structure = jp.analyze(fn, params, x)
    assert not structure.inexact
    gated_, sliced = gated_and_cut(structure, params, x)
    np.testing.assert_allclose(sliced, gated_, atol=2e-5)


def test_a_gate_after_the_norm_and_before_the_nonlinearity():
    """relu(f (scale x + bias)): what a layer of its own would compute."""
    params = weights(a=(4, 6), b=(6, 2)) | {"scale": jnp.arange(1.0, 7), "bias": -jnp.ones(6)}

    def network(p, x, f):
        h = (x @ p["a"]) * p["scale"][None] + p["bias"][None]
        return jnp.maximum(f[None] * h, 0) @ p["b"]

    x, f = jax.random.normal(jax.random.key(0), (5, 4)), jnp.linspace(0.0, 1.0, 6)
    fn = lambda p, x: network(p, x, jnp.ones(6))
    folded = jp.structured.apply_gates(jp.analyze(fn, params, x), params, {"a": f})
    np.testing.assert_allclose(fn(folded, x), network(params, x, f), rtol=1e-5)
    np.testing.assert_array_equal(folded["a"], params["a"])
    np.testing.assert_allclose(folded["scale"], f * params["scale"])
    np.testing.assert_allclose(folded["bias"], f * params["bias"])


@pytest.fixture(scope="module")
def training():
    """A residual network with batch norm, and its outputs in training, by gates of its branch."""
    structure, variables, x = analyzed("batch norm")
    train = Residual(lambda: nn.BatchNorm(use_running_average=False))

    def outputs(variables, gates):
        soft = jp.structured.apply_gates(structure, variables, {"params/Conv_1": gates})
        return train.apply(soft, x, mutable=["batch_stats"])[0]

    return variables, jax.jit(outputs)


def test_its_own_norm_can_not_undo_a_gate(training):
    variables, outputs = training
    gates, kernel = jnp.linspace(0.3, 1, 4), variables["params"]["Conv_1"]["kernel"]
    whole = outputs(variables, jnp.ones(4))
    assert float(abs(outputs(variables, gates) - whole).max()) > 1e-2
    # of the convolution it would
    scaled = {**variables["params"], "Conv_1": {"kernel": gates[None, None, None] * kernel}}
    undone = outputs({**variables, "params": scaled}, jnp.ones(4))
    np.testing.assert_allclose(undone, whole, atol=1e-4)


def test_the_next_norm_hides_a_layer_that_dies_as_a_whole(training):
    """Why the strongest gate of such a layer is held at 1: `gates.keep_strongest`."""
    variables, outputs = training
    whole, dying, dead = (outputs(variables, jnp.full(4, gate)) for gate in (1.0, 0.1, 0.0))
    assert float(abs(dead - whole).max()) > 20 * float(abs(dying - whole).max())


def test_gates_of_1_change_nothing_and_keep_the_dtype():
    structure, variables, _ = analyzed("attention")
    half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), variables)
    ones = jp.structured.gate_logits(structure, 1.0)
    same = jp.structured.apply_gates(structure, half, ones)
    jax.tree.map(np.testing.assert_array_equal, same, half)
    assert {w.dtype for w in jax.tree.leaves(same)} == {jnp.dtype(jnp.bfloat16)}


def test_under_jit_grad_and_vmap():
    params = weights(a=(4, 6), b=(6, 6), c=(6, 2))
    fn = lambda p, x: jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]
    structure = jp.analyze(fn, params, jnp.ones((2, 4)))
    stack = jax.tree.map(lambda *f: jnp.stack(f), *(half_open(structure, i) for i in range(2)))
    loss = lambda f: (
        fn(jp.structured.apply_gates(structure, params, f), jnp.ones((2, 4))) ** 2
    ).sum()
    slopes = jax.jit(jax.vmap(jax.grad(loss)))(stack)
    own = jax.grad(loss)(jax.tree.map(lambda f: f[1], stack))
    for name in structure.groups:
        np.testing.assert_allclose(slopes[name][1], own[name], rtol=1e-5, atol=1e-6)
        assert (own[name] != 0).any()


def test_groups_that_are_not_named_are_open():
    structure, variables, _ = analyzed("concat")
    soft = jp.structured.apply_gates(structure, variables, {"params/Conv_1": jnp.full(3, 0.5)})[
        "params"
    ]
    before = variables["params"]
    np.testing.assert_array_equal(soft["Conv_0"]["kernel"], before["Conv_0"]["kernel"])
    np.testing.assert_array_equal(soft["Conv_1"]["kernel"], 0.5 * before["Conv_1"]["kernel"])
    assert list(jp.structured.gate_logits(structure)) == list(structure.groups)


def test_a_closed_gate_learns_through_a_relu_only_at_readers():
    """The slope of relu(f x) at f = 0 is that of relu at 0, which is 0."""
    params = weights(a=(4, 6), b=(6, 2))
    fn = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]
    x = jax.random.normal(jax.random.key(0), (5, 4))
    structure = jp.analyze(fn, params, x)

    def slope(at_readers):
        apply = partial(jp.structured.apply_gates, structure, params, at_readers=at_readers)
        return jax.grad(lambda f: (fn(apply({"a": f}), x) ** 2 + 1).sum())(jnp.ones(6).at[0].set(0))

    before, after = slope(False), slope(True)
    assert before[0] == 0 != after[0]
    np.testing.assert_allclose(before[1:], after[1:], rtol=1e-4)


@pytest.mark.parametrize("name", quick(["mlp", "flattened", "batch norm", "layer norm"]))
def test_gates_of_each_example_are_gates_of_that_example(name):
    structure, variables, x = analyzed(name)
    of_each = [half_open(structure, i) for i in range(len(x))]
    gates = jax.tree.map(lambda *own: jnp.stack(own), *of_each)
    with nn.intercept_methods(jp.structured.per_example(structure, gates)):
        together = structure.fn(variables, x)
    for i, own in enumerate(of_each):
        soft = jp.structured.apply_gates(structure, variables, own, at_readers=True)
        np.testing.assert_allclose(together[i], structure.fn(soft, x)[i], rtol=1e-4, atol=1e-5)


# --- bad input ------------------------------------------------------------------------------------


def test_bad_input():
    structure, variables, x = analyzed("concat")
    apply = lambda gates: jp.structured.apply_gates(structure, variables, gates)
    said = raised(lambda: apply({"Conv_0": jnp.ones(4)}))
    assert "no group 'Conv_0'; the groups are 'params/Conv_0'" in said
    said = raised(lambda: apply({"params/Conv_0": jnp.ones((2, 4))}))
    assert "have shape (2, 4), its neurons are (4,)" in said and "use vmap" in said
    assert "{group: (size,)}" in raised(lambda: apply(jnp.ones(4)), TypeError)
    with pytest.raises(ValueError, match="Conv_0/bias"):
        jp.structured.apply_gates(structure, {"a": x}, {"params/Conv_0": jnp.ones(4)})


@pytest.mark.parametrize("turns", [0, 2])
def test_a_loop_may_take_no_turn(turns):
    """What the carry begins with is closed too: h alone would leave y open where no turn is."""
    draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)
    params = {"h": draw(0, 4, 3), "y": draw(1, 4, 3), "out": draw(2, 3, 2)}
    x = draw(3, 5, 4)

    def fn(p, x, turns):
        h, y = x @ p["h"], x @ p["y"]
        z = jax.lax.while_loop(lambda c: c[0] < turns, lambda c: (c[0] + 1, h), (0, y))[1]
        return z @ p["out"]

    structure = jp.analyze(fn, params, x, 0)
    (name,) = structure.groups
    assert at(structure, name) == ["h[1]", "y[1]"]
    gates = {name: jnp.array([0.0, 1.0, 1.0])}
    small = jp.compact(structure, params, {name: gates[name] > 0})
    folded = jp.structured.apply_gates(structure, params, gates)
    np.testing.assert_allclose(fn(folded, x, turns), small.fn(small.params, x, turns), rtol=1e-5)
