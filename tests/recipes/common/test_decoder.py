"""The decoder: linen and nnx alike, causal, positions relative, heads and channels as groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxprune as jp
from recipes.common.models import Decoder, Size, decoder, decoder_nnx

SMALL = Size(layers=2, width=16, heads=2, queries=3, dims=8, hidden=24)
FUSED = SMALL._replace(fused=True)
TOKENS = np.random.default_rng(0).integers(0, 11, (2, 7)).astype(np.uint8)


def made(size, seed=0):
    module = Decoder(11, size)
    return module, module.init(jax.random.key(seed), TOKENS)


@pytest.mark.full
@pytest.mark.parametrize("size", [SMALL, FUSED], ids=["apart", "fused"])
def test_linen_and_nnx_compute_the_same_from_the_same_params(size):
    module, variables = made(size)
    graphdef, state = nnx.split(decoder_nnx.Decoder(11, size, rngs=nnx.Rngs(1)))
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    assert shapes(nnx.to_pure_dict(state)) == shapes(variables["params"])
    nnx.replace_by_pure_dict(state, variables["params"])
    logits = nnx.merge(graphdef, state)(TOKENS)
    assert logits.shape == (2, 7, 11)
    np.testing.assert_array_equal(logits, module.apply(variables, TOKENS))


@pytest.mark.parametrize(
    "name,weights", [("tiny", 136_160), ("small", 795_904), ("medium", 9_909_504)]
)
def test_sizes_with_the_characters_of_shakespeare(name, weights):
    module = Decoder(65, decoder.SIZES[name])
    variables = jax.eval_shape(module.init, jax.random.key(0), TOKENS)
    assert sum(x.size for x in jax.tree.leaves(variables)) == weights


def test_no_token_sees_a_later_one():
    module, variables = made(SMALL)
    later = TOKENS.copy()
    later[:, 4:] = (later[:, 4:] + 1) % 11
    a, b = module.apply(variables, TOKENS), module.apply(variables, later)
    np.testing.assert_array_equal(a[:, :4], b[:, :4])
    assert (np.abs(a - b)[:, 4:].max((0, 2)) > 1e-4).all()


@pytest.mark.full
def test_a_turned_product_depends_on_the_distance_only():
    """Queries and keys are the same vectors at all places: products are those of the distance."""
    q, k = (
        jnp.tile(x, (1, 6, 1, 1)) for x in np.random.default_rng(1).normal(size=(2, 1, 1, 1, 8))
    )
    products = np.einsum("nthd,nshd->ts", *map(decoder.rotated, (q, k)))
    for distance in range(6):
        diagonal = np.diagonal(products, -distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4)
    assert abs(products[1, 0] - products[2, 0]) > 1e-3
    # the first pair of dimensions turns by one radian a token
    np.testing.assert_allclose(
        decoder.rotated(jnp.eye(8)[None, None, :1].repeat(2, 1))[0, 1, 0],
        [np.cos(1), 0, 0, 0, np.sin(1), 0, 0, 0],
        rtol=1e-6,
    )


GROUPS = {
    "apart": {"query.heads": 2, "query.queries": 3, "value": 8},
    "fused": {"qkv.heads": 2, "qkv.queries": 3},
}


@pytest.mark.full
@pytest.mark.parametrize("size", [SMALL, FUSED], ids=GROUPS)
def test_groups_are_whole_heads_and_channels(size, request):
    module, variables = made(size)
    structure = jp.analyze(module.apply, variables, TOKENS)
    heads = GROUPS[request.node.callspec.id]
    wanted = {"params/embed": 16}
    for i in range(2):
        wanted |= {f"params/block_{i}/attention/{name}": n for name, n in heads.items()}
        wanted |= {f"params/block_{i}/mlp/gate": 24}
    assert {name: group.size for name, group in structure.groups.items()} == wanted
    # a head of keys goes with its three queries
    name = f"params/block_1/attention/{next(iter(heads))}"
    before = sum(x.size for x in jax.tree.leaves(variables))
    kept = {name: np.array([False, True]), "params/block_0/mlp/gate": np.arange(24) % 2 == 1}
    small = jp.compact(structure, variables, kept)
    one_head, channels = (3 + 2) * 8 * 16 + 3 * 8 * 16, 12 * 3 * 16
    assert before - sum(x.size for x in jax.tree.leaves(small.params)) == one_head + channels
    masked = jp.apply_masks(variables, jp.structured.masks(structure, kept))
    np.testing.assert_allclose(
        small.fn(small.params, TOKENS), module.apply(masked, TOKENS), atol=1e-5
    )
