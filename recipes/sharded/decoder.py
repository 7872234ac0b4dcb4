"""A decoder-only language model as a function of its params, laid out over data and model axes.

Layers are stacked, run by one `scan`, and recomputed on the way back. It is as LLaMA is: RMS norms
before attention and a gated MLP, rotary positions, no biases.

Reference: Touvron et al., 2023, LLaMA: Open and Efficient Foundation Language Models.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import PartitionSpec as P


class Sizes(NamedTuple):
    """The sizes of LLaMA-7B: 6.74 billion weights, 6.48 of them in the layers' kernels."""

    layers: int = 32
    width: int = 4096
    heads: int = 32
    hidden: int = 11_008
    words: int = 32_000


def shapes(sizes: Sizes, dtype: Any = jnp.bfloat16) -> dict[str, Any]:
    """The params as ShapeDtypeStructs."""
    n, d, h, v = sizes.layers, sizes.width, sizes.hidden, sizes.words
    wanted = {
        "embedding": (v, d),
        "layers": {
            "attention_norm": {"scale": (n, d)},
            "query": {"kernel": (n, d, d)},
            "key": {"kernel": (n, d, d)},
            "value": {"kernel": (n, d, d)},
            "out": {"kernel": (n, d, d)},
            "mlp_norm": {"scale": (n, d)},
            "gate": {"kernel": (n, d, h)},
            "up": {"kernel": (n, d, h)},
            "down": {"kernel": (n, h, d)},
        },
        "norm": {"scale": (d,)},
        "head": {"kernel": (d, v)},
    }
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, dtype),
        wanted,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def specs() -> dict[str, Any]:
    """How the params lie: a kernel over both axes, features of heads and the MLP over "model"."""
    into = {"kernel": P(None, "data", "model")}
    out_of = {"kernel": P(None, "model", "data")}
    norm = {"scale": P()}
    return {
        "embedding": P("model", "data"),
        "layers": {
            "attention_norm": norm,
            "query": into,
            "key": into,
            "value": into,
            "out": out_of,
            "mlp_norm": norm,
            "gate": into,
            "up": into,
            "down": out_of,
        },
        "norm": norm,
        "head": {"kernel": P("data", "model")},
    }


def loss(sizes: Sizes, params: Any, tokens: jax.Array) -> jax.Array:
    """The mean cross-entropy of each next token; `tokens` int32 (batch, length)."""
    x = _over(params["embedding"][tokens[:, :-1]], "data", None, None)
    layer = jax.checkpoint(lambda x, own: (_layer(sizes, x, own), None))
    x, _ = lax.scan(layer, x, params["layers"])
    logits = _rms(x, params["norm"]["scale"]) @ params["head"]["kernel"]
    logits = _over(logits.astype(jnp.float32), "data", None, "model")
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def _layer(sizes: Sizes, x: jax.Array, own: Any) -> jax.Array:
    batch, length, width = x.shape
    y = _rms(x, own["attention_norm"]["scale"])
    heads = (batch, length, sizes.heads, width // sizes.heads)
    q, k, v = (
        _over((y @ own[name]["kernel"]).reshape(heads), "data", None, "model", None)
        for name in ("query", "key", "value")
    )
    y = jax.nn.dot_product_attention(_rotated(q), _rotated(k), v, is_causal=True)
    x = x + _over(y.reshape(x.shape) @ own["out"]["kernel"], "data", None, None)
    y = _rms(x, own["mlp_norm"]["scale"])
    y = jax.nn.silu(y @ own["gate"]["kernel"]) * (y @ own["up"]["kernel"])
    return x + _over(_over(y, "data", None, "model") @ own["down"]["kernel"], "data", None, None)


def _rms(x: jax.Array, scale: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    unit = wide * lax.rsqrt((wide * wide).mean(-1, keepdims=True) + 1e-6)
    return unit.astype(x.dtype) * scale[None, None]


def _rotated(x: jax.Array) -> jax.Array:
    """Rotary positions (Su et al., 2021) of (batch, length, heads, features)."""
    _, length, _, features = x.shape
    rates = 10_000.0 ** (-jnp.arange(0, features, 2, dtype=jnp.float32) / features)
    angle = jnp.arange(length, dtype=jnp.float32)[None, :, None, None] * rates[None, None, None]
    a, b = jnp.split(x.astype(jnp.float32), 2, -1)
    turned = (a * jnp.cos(angle) - b * jnp.sin(angle), a * jnp.sin(angle) + b * jnp.cos(angle))
    return jnp.concatenate(turned, -1).astype(x.dtype)


def _over(x: jax.Array, *axes: str | None) -> jax.Array:
    return lax.with_sharding_constraint(x, P(*axes))
