"""The decoder of `recipes.common.models.decoder` as flax nnx modules, with the same params.

A linen tree of params is the pure state of the nnx module, and the reverse:

    graphdef, state = nnx.split(Decoder(65, SIZES["small"], rngs=nnx.Rngs(0)))
    nnx.replace_by_pure_dict(state, params)
    logits = nnx.merge(graphdef, state)(tokens)
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from recipes.common.models.decoder import INITIAL, Size, attend, parts

Heads = partial(nnx.LinearGeneral, use_bias=False)
Linear = partial(nnx.Linear, use_bias=False)


class Decoder(nnx.Module):
    """A language model: position i of the logits tells of token i + 1."""

    def __init__(self, vocabulary: int, size: Size, *, rngs: nnx.Rngs):
        self.layers = size.layers
        self.embed = nnx.Embed(vocabulary, size.width, embedding_init=INITIAL, rngs=rngs)
        for i in range(size.layers):
            setattr(self, f"block_{i}", Block(size, rngs=rngs))
        self.norm = nnx.RMSNorm(size.width, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Tokens (n, t) -> logits (n, t, vocabulary)."""
        x = self.embed(tokens.astype(jnp.int32))
        for i in range(self.layers):
            x = getattr(self, f"block_{i}")(x)
        return self.embed.attend(self.norm(x))


class Block(nnx.Module):
    """Attention, then the MLP, each added to the stream (n, t, width)."""

    def __init__(self, size: Size, *, rngs: nnx.Rngs):
        self.attention = Attention(size, rngs=rngs)
        self.attention_norm = nnx.RMSNorm(size.width, rngs=rngs)
        self.mlp = MLP(size, rngs=rngs)
        self.mlp_norm = nnx.RMSNorm(size.width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Attention(nnx.Module):
    """Causal attention with grouped queries."""

    def __init__(self, size: Size, *, rngs: nnx.Rngs):
        s = size
        self.fused = s.fused
        if s.fused:
            self.qkv = Heads(s.width, (s.heads, s.queries + 2, s.dims), rngs=rngs)
        else:
            self.query = Heads(s.width, (s.heads * s.queries, s.dims), rngs=rngs)
            self.key = Heads(s.width, (s.heads, s.dims), rngs=rngs)
            self.value = Heads(s.width, (s.heads, s.dims), rngs=rngs)
        self.out = Heads((s.heads * s.queries, s.dims), s.width, axis=(-2, -1), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = parts(self.qkv(x)) if self.fused else (self.query(x), self.key(x), self.value(x))
        return self.out(attend(q, k, v))


class MLP(nnx.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, size: Size, *, rngs: nnx.Rngs):
        self.gate = Linear(size.width, size.hidden, rngs=rngs)
        self.up = Linear(size.width, size.hidden, rngs=rngs)
        self.down = Linear(size.hidden, size.width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(nnx.silu(self.gate(x)) * self.up(x))
