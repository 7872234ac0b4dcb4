"""Kernels that another library has quantized: a leaf of floats each, by masks of the floats."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp


@flax.struct.dataclass
class Codes:
    qvalue: Any
    scale: Any
    zero_point: Any = None


@flax.struct.dataclass
class Held:
    array: Codes
    how: str = flax.struct.field(pytree_node=False, default="int4")


# two kernels of 2 x 4: a scale for each output, and for each half of the outputs with a zero point
A = Codes(jnp.array([[1, 0, -7, 3], [2, 4, 0, 0]], jnp.int4), jnp.array([[0.5, 1.0, 2.0, 1.0]]))
B = Codes(
    jnp.array([[3, 4, 3, 9], [3, 3, 0, 9]], jnp.int8),
    jnp.array([[0.5, 2.0]]),
    jnp.array([[3, 9]], jnp.int8),
)
PARAMS = {"a": {"kernel": Held(A), "bias": jnp.zeros(4)}, "b": {"kernel": B}}
WEIGHTS = {
    "a": [[0.5, 0.0, -14.0, 3.0], [1.0, 4.0, 0.0, 0.0]],
    "b": [[0.0, 0.5, -12.0, 0.0], [0.0, 0.0, -18.0, 0.0]],
}
MASKS = {"a": {"kernel": np.array(WEIGHTS["a"]) != 0, "bias": None},
         "b": {"kernel": np.array(WEIGHTS["b"]) != 0}}  # fmt: skip


def test_kernels_are_floats_at_the_paths_of_the_float_network():
    chosen = jp.kernels(PARAMS)
    for name, weights in WEIGHTS.items():
        np.testing.assert_array_equal(chosen[name]["kernel"], weights)
    assert chosen["a"]["bias"] is None
    scores = jp.magnitude(jp.matching(exclude="b/*")(PARAMS))
    masks = jp.select(scores, jp.global_threshold, 0.75)
    assert np.argwhere(masks["a"]["kernel"]).tolist() == [[0, 2], [1, 1]]  # by floats: 14 and 4


def test_the_report_counts_codes_of_zero():
    fn = lambda p, x: x @ (p["a"]["kernel"].array.qvalue.astype(jnp.float32) * A.scale)
    result = jp.report(PARAMS, MASKS, fn, jnp.ones((1, 2)), bits=(4, 8))
    assert [(row.path, row.kept, row.total) for row in result.layers] == [
        ("a/kernel", 5, 8),
        ("b/kernel", 3, 8),
    ]
    assert not result.warnings
    assert [row.flops for row in result.layers] == [16, 0]
    assert result.layers[0].bops == 8 * (5 / 8 * 32 + 12 + 1)
    wrong = {**MASKS, "b": {"kernel": jnp.zeros((2, 4), bool).at[0, 0].set(True)}}
    with pytest.warns(UserWarning, match="3 weights are not zero where their mask is False"):
        jp.report(PARAMS, wrong)


def test_masks_write_the_code_of_zero():
    masks = {"a": {"kernel": jnp.zeros((2, 4), bool).at[0, 2].set(True), "bias": None},
             "b": {"kernel": jnp.zeros((2, 4), bool)}}  # fmt: skip
    pruned = jax.jit(jp.apply_masks)(PARAMS, masks)
    assert pruned["a"]["kernel"].how == "int4"
    codes = pruned["a"]["kernel"].array.qvalue
    assert codes.dtype == jnp.int4 and codes.astype(int).tolist() == [[0, 0, -7, 0], [0] * 4]
    assert pruned["b"]["kernel"].qvalue.tolist() == [[3, 3, 9, 9]] * 2
    assert not jp.kernels(pruned)["b"]["kernel"].any()


def test_bad_masks():
    gates = {"a": {"kernel": jnp.ones((2, 4)), "bias": None}, "b": {"kernel": None}}
    with pytest.raises(TypeError, match="a quantized weight takes a mask of bool"):
        jp.apply_masks(PARAMS, gates)
    with pytest.raises(ValueError, match="'b/kernel' has shape"):
        jp.apply_masks(PARAMS, {**MASKS, "b": {"kernel": jnp.ones((2, 3), bool)}})


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(32)(x))
        return nn.Dense(4)(x)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_masks_survive_quantization_aware_training_and_the_integers_after_it():
    """4 bits and gradual magnitude pruning to 90 % in one chain of optax; then int4 for real."""
    qwix = pytest.importorskip("qwix")
    x = jax.random.normal(jax.random.key(0), (64, 16))
    labels = x[:, :4].argmax(-1)
    params = Net().init(jax.random.key(1), x)["params"]
    rule = qwix.QuantizationRule(weight_qtype=jnp.int4, act_qtype=jnp.int8)
    network = qwix.quantize_model(Net(), qwix.QtProvider([rule]))
    sparsity = optax.polynomial_schedule(0.0, 0.9, 3, 50, 10)
    gmp = jp.every(10, jp.prune(jp.magnitude, jp.global_threshold, sparsity))
    tx = jp.sparsify(optax.adam(1e-2), gmp)

    def loss(params):
        logits = network.apply({"params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state, losses = tx.init(params), []
    for _ in range(100):
        params, state, value = step(params, state)
        losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]
    masks = jp.get_masks(state)
    floats = jp.report(params, masks)
    assert floats.prunable.kept == 64 and not floats.warnings

    integers = qwix.quantize_model(Net(), qwix.PtqProvider([rule]))
    abstract = jax.eval_shape(integers.init, jax.random.key(0), x)["params"]
    codes = qwix.quantize_params(params, abstract)
    assert codes["Dense_0"]["kernel"].array.qvalue.dtype == jnp.int4
    report = jp.report(codes, masks, lambda p, x: integers.apply({"params": p}, x), x)
    assert [row.kept for row in report.layers] == [row.kept for row in floats.layers]
    assert [row.flops for row in report.layers] == [2 * 64 * 16 * 32, 2 * 64 * 32 * 4]
    assert not report.warnings
    np.testing.assert_allclose(
        integers.apply({"params": codes}, x), network.apply({"params": params}, x), atol=1e-5
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("bits", [4, 8])
def test_fake_quantization_has_the_grid_of_integer_kernels(bits):
    """Its largest weight is half a level beyond its largest code, which a clip of ours says.

    A negative one has the code below, which ours leaves out; so the largest are positive here.
    """
    qwix = pytest.importorskip("qwix")
    x = jax.random.normal(jax.random.key(0), (64, 16))

    def turned(w):
        largest = jnp.take_along_axis(w, jnp.argmax(jnp.abs(w), 0)[None], 0)
        return w * jnp.sign(largest) if w.ndim == 2 else w

    params = jax.tree.map(turned, Net().init(jax.random.key(1), x)["params"])
    scores = jp.magnitude(jp.kernels(params))
    params = jp.apply_masks(params, jp.select(scores, jp.global_threshold, 0.8))
    rule = qwix.QuantizationRule(weight_qtype=f"int{bits}")
    integers = qwix.quantize_model(Net(), qwix.PtqProvider([rule]))
    abstract = jax.eval_shape(integers.init, jax.random.key(0), x)["params"]
    codes = qwix.quantize_params(params, abstract)
    top = 2 ** (bits - 1) - 1
    simulated = jp.reparam.fake_quantization(bits, axes=-1, clip=top / (top + 0.5))
    used = simulated.apply(simulated.init(params))
    np.testing.assert_allclose(
        integers.apply({"params": codes}, x), Net().apply({"params": used}, x), atol=1e-6
    )
