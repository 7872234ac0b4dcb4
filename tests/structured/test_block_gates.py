"""Gates of blocks: what their zeros, ones and values between compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from recipes.common.models import decoder, vit
from tests.coupling.test_stated import raised
from tests.structured.test_removal import resnet

SIZE = decoder.Size(layers=2, width=8, heads=1, queries=2, dims=4, hidden=6)


def of(module, x):
    variables = module.init(jax.random.key(0), x)
    return jp.analyze(module.apply, variables, x), variables, x


NETWORKS = {
    "residual": (resnet, "block_2"),
    "decoder": (lambda: of(decoder.Decoder(5, SIZE), jnp.array([[0, 3, 1]])), "block_1"),
    "vit": (lambda: of(vit.ViT(3), jnp.ones((1, 4, 4, 1))), "block_0"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_closed_gate_is_a_removed_block_and_an_open_one_changes_nothing(name):
    make, block = NETWORKS[name]
    structure, variables, x = make()
    fn = jax.jit(structure.fn)
    gated = lambda gate: fn(jp.structured.apply_block_gates(structure, variables, {block: gate}), x)
    small = jp.compact(structure, variables, jp.structured.remove_blocks(structure, [block]))
    np.testing.assert_allclose(gated(0.0), small.fn(small.params, x), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(gated(1.0), fn(variables, x))
    assert np.abs(gated(0.0) - gated(1.0)).max() > 1e-3


def test_a_gate_scales_what_a_branch_adds_and_nothing_else():
    params = {
        "block": {"norm": jnp.ones(2), "up": jnp.ones((2, 3)), "bias": jnp.array([2.0, -1.0])},
        "head": jnp.eye(2),
    }

    def fn(p, x):
        h = jax.nn.relu(
            x / jnp.sqrt((x**2).mean() + 1e-6) * p["block"]["norm"][None] @ p["block"]["up"]
        )
        return (x + h[:, :2] + p["block"]["bias"][None]) @ p["head"]

    x = jnp.array([[1.0, 2.0]])
    structure = jp.analyze(fn, params, x)
    half = jp.structured.apply_block_gates(structure, params, {"block": 0.5})
    np.testing.assert_allclose(fn(half, x), x + 0.5 * (fn(params, x) - x), rtol=1e-6)
    np.testing.assert_array_equal(half["block"]["norm"], params["block"]["norm"])


def test_gates_are_learned_and_choose_exactly_n_of_m():
    structure, variables, x = of(decoder.Decoder(5, SIZE), jnp.array([[0, 3, 1]]))
    blocks, gate = ["block_0", "block_1"], jp.gates.n_of_m(1, 2, scale=1.0)

    @jax.jit
    @jax.grad
    def slope(logits, key):
        gates = dict(zip(blocks, gate.sample(key, logits).ravel(), strict=True))
        params = jp.structured.apply_block_gates(structure, variables, gates)
        return jnp.square(structure.fn(params, x)).mean()

    slopes = slope(jp.gates.depth_logits(blocks, 1, 2), jax.random.key(1))
    assert slopes.shape == (1, 2) and np.isfinite(slopes).all() and (slopes != 0).all()


def test_what_has_no_gate_is_refused():
    structure, variables, _ = resnet()
    gated = lambda gates: jp.structured.apply_block_gates(structure, variables, gates)
    assert "without block 'block_0' an output depends on no input" in raised(
        lambda: gated({"block_0": 1.0})
    )
    assert "there is no block 'block_9'" in raised(lambda: gated({"block_9": 1.0}))
    assert "is a scalar; got shape (3,). With an axis of seeds" in raised(
        lambda: gated({"block_1": jnp.ones(3)})
    )
