"""Decoders are cut by heads: rotary positions, grouped queries, tied embeddings, fused kernels."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxprune as jp
from recipes.common.models import decoder, decoder_nnx

SIZE = decoder.Size(layers=1, width=16, heads=4, queries=2, dims=4, hidden=12)
TOKENS = jax.random.randint(jax.random.key(0), (2, 6), 0, 11)


def linen(fused):
    module = decoder.Decoder(11, SIZE._replace(fused=fused))
    params = module.init(jax.random.key(1), TOKENS)["params"]
    return lambda params, x: module.apply({"params": params}, x), params


def by_nnx(fused):
    module = decoder_nnx.Decoder(11, SIZE._replace(fused=fused), rngs=nnx.Rngs(1))
    graphdef, state = nnx.split(module)
    return lambda state, x: nnx.merge(graphdef, state)(x), state


def flat(repeat):
    """One matrix for queries, keys and values, cut by columns, as GPT's weights are."""
    h, q, d = SIZE.heads, SIZE.queries, SIZE.dims
    shapes = {"embed": (11, 16), "qkv": (16, h * (q + 2) * d), "out": (h * q * d, 16)}
    keys = jax.random.split(jax.random.key(1), 3)
    params = {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items(), strict=True)}

    def fn(params, x):
        stream = params["embed"][x]
        parts = jnp.split(stream @ params["qkv"], [h * q * d, h * (q + 1) * d], -1)
        queries, keys, values = (y.reshape(*x.shape, -1, d) for y in parts)
        if repeat:
            keys, values = (jnp.repeat(y, q, 2) for y in (keys, values))
        attended = decoder.attend(queries, keys, values).reshape(*x.shape, -1)
        return (stream + attended @ params["out"]) @ params["embed"].T

    return fn, params


PROGRAMS = {
    "linen": partial(linen, False),
    "linen, fused": partial(linen, True),
    "nnx": partial(by_nnx, False),
    "nnx, fused": partial(by_nnx, True),
    "flat, fused": partial(flat, False),
    "flat, fused, repeated": partial(flat, True),
}
QUICK = ("nnx, fused", "flat, fused, repeated")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.full) for n in PROGRAMS],
)
def test_a_cut_by_heads_computes_what_the_masked_network_does(name):
    fn, params = PROGRAMS[name]()
    structure = jp.analyze(fn, params, TOKENS)
    heads = [group for group in structure.groups if group.endswith(".heads")]
    assert len(heads) == (1 if "flat" in name else SIZE.layers)
    assert len([group for group in structure.groups if group.endswith(".queries")]) == len(heads)
    assert all(structure.groups[group].size == SIZE.heads for group in heads)
    scores = jp.structured.per_group(structure, prunable=lambda params: params)(params)
    kept = jp.pick(structure, scores, 0.5, jp.uniform, groups=["*.heads"])
    assert {group: int(mask.sum()) for group, mask in kept.items() if group in heads} == (
        dict.fromkeys(heads, SIZE.heads // 2)
    )
    small = jp.compact(structure, params, kept)
    masked = jp.apply_masks(params, jp.structured.masks(structure, kept))
    found, wanted = small.fn(small.params, TOKENS), fn(masked, TOKENS)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    assert not np.allclose(wanted, fn(params, TOKENS), atol=1e-4)
    of_heads = {m.path for group in heads for m in structure.groups[group].members}
    sizes = lambda tree: {
        path: leaf.size for path, leaf in jp.trees.present_leaves(tree) if path in of_heads
    }
    assert {p: 2 * n for p, n in sizes(small.params).items()} == sizes(params)
