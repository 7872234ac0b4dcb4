"""A decoder of text, as flax linen modules: tokens (n, t) -> logits (n, t, vocabulary).

Each block is x + attention(norm(x)), then x + mlp(norm(x)): RMS norms before, rotary positions,
grouped queries, a gated MLP, no biases. The table of tokens is also the last layer.
`recipes.common.models.decoder_nnx` has the same network, which takes the same params.

References: Touvron et al., 2023, Llama 2: Open Foundation and Fine-Tuned Chat Models; Ainslie et
al., 2023, GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints; Su
et al., 2021, RoFormer: Enhanced Transformer with Rotary Position Embedding; Shazeer, 2020, GLU
Variants Improve Transformer.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


class Size(NamedTuple):
    """The sizes of a decoder; `queries` heads of queries share one head of keys and values."""

    layers: int
    width: int
    heads: int  # of keys and values
    queries: int  # of each of these
    dims: int  # of a head; even
    hidden: int  # of the MLP
    fused: bool = False  # one kernel for queries, keys and values
    causal: bool = True  # attention to earlier tokens, with rotary positions; else to all


# weights with a vocabulary of 65: 0.12 M, 0.80 M, 9.9 M
SIZES = {
    "tiny": Size(layers=2, width=80, heads=2, queries=2, dims=20, hidden=192),
    "small": Size(layers=4, width=128, heads=4, queries=2, dims=16, hidden=384),
    "medium": Size(layers=6, width=384, heads=2, queries=3, dims=64, hidden=1088),
}
LAYERS = ("query", "key", "value", "qkv", "out", "gate", "up", "down")  # in the order of data
INITIAL = nn.initializers.normal(0.02)  # of the table: its logits begin small
Heads = partial(nn.DenseGeneral, use_bias=False)
Dense = partial(nn.Dense, use_bias=False)


class Decoder(nn.Module):
    """A language model: position i of the logits tells of token i + 1."""

    vocabulary: int
    size: Size

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        table = nn.Embed(self.vocabulary, self.size.width, embedding_init=INITIAL, name="embed")
        x = table(tokens.astype(jnp.int32))
        for i in range(self.size.layers):
            x = Block(self.size, name=f"block_{i}")(x)
        return table.attend(nn.RMSNorm(name="norm")(x))


class Block(nn.Module):
    """Attention, then the MLP, each added to the stream (n, t, width)."""

    size: Size

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + Attention(self.size, name="attention")(nn.RMSNorm(name="attention_norm")(x))
        return x + MLP(self.size, name="mlp")(nn.RMSNorm(name="mlp_norm")(x))


class Attention(nn.Module):
    """Attention with grouped queries."""

    size: Size

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        s = self.size
        if s.fused:
            q, k, v = parts(Heads((s.heads, s.queries + 2, s.dims), name="qkv")(x))
        else:
            q = Heads((s.heads * s.queries, s.dims), name="query")(x)
            k = Heads((s.heads, s.dims), name="key")(x)
            v = Heads((s.heads, s.dims), name="value")(x)
        attended = attend if s.causal else jax.nn.dot_product_attention
        return Heads(s.width, axis=(-2, -1), name="out")(attended(q, k, v))


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    size: Size

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gate, up = (Dense(self.size.hidden, name=name)(x) for name in ("gate", "up"))
        return Dense(self.size.width, name="down")(nn.silu(gate) * up)


def parts(qkv: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The product of a fused kernel (n, t, heads, queries + 2, dims) as queries, keys, values."""
    q, k, v = jnp.split(qkv, (qkv.shape[-2] - 2, qkv.shape[-2] - 1), axis=-2)
    return q.reshape(*q.shape[:2], -1, q.shape[-1]), k[..., 0, :], v[..., 0, :]


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attention to earlier tokens, with rotary positions.

    q (n, t, heads * queries, dims); k, v (n, t, heads, dims) -> (n, t, heads * queries, dims).
    """
    return jax.nn.dot_product_attention(rotated(q), rotated(k), v, is_causal=True)


def rotated(x: jax.Array) -> jax.Array:
    """Rotary positions of x (n, t, heads, dims): pair i turns by t * 10000 ** (-2 i / dims)."""
    half = x.shape[-1] // 2
    rates = 10_000.0 ** (-jnp.arange(half) / half)
    angles = jnp.outer(jnp.arange(x.shape[1]), rates)[None, :, None]  # (1, t, 1, half)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def place_of(path: str) -> tuple[int, int]:
    """By the path of a layer with a kernel, "block_1/mlp/up", its block and its place in it."""
    block, *_, layer = path.removesuffix("/kernel").split("/")
    return int(block.rpartition("_")[2]), LAYERS.index(layer)
