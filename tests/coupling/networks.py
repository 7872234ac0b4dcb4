"""Tiny networks of many families, for the tests of `analyze` and `compact`."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

IMAGES = (2, 8, 8, 3)
TOKENS = (2, 6)
SEQUENCE = (2, 6, 8)


class Network(NamedTuple):
    """A network, the shape of its inputs, and the groups that it has: (size, members) of each.

    `table` is the size of its vocabulary, 0 if it reads floats; `exact` whether a masked and a
    compacted one agree.
    """

    module: nn.Module
    shape: tuple[int, ...]
    groups: list[tuple[int, int]]
    table: int = 0
    exact: bool = True


class Mlp(nn.Module):
    act: Any = nn.softplus  # f(0) != 0

    @nn.compact
    def __call__(self, x):
        for width in (7, 5):
            x = self.act(nn.Dense(width)(x))
        return nn.Dense(3)(x)


class Flattened(nn.Module):
    """Convolutions, batch norm, pooling, then a flattening: channels last, or first."""

    first: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(5, (3, 3))(x)))
        x = nn.max_pool(nn.relu(nn.Conv(6, (3, 3), strides=2)(x)), (2, 2), (2, 2))
        x = x.transpose(0, 3, 1, 2) if self.first else x
        return nn.Dense(3)(nn.relu(nn.Dense(7)(x.reshape(x.shape[0], -1))))


class Residual(nn.Module):
    """A stem, a bottleneck of two convolutions that adds to it, the mean, a dense layer."""

    norm: Any

    @nn.compact
    def __call__(self, x):
        x = nn.relu(self.norm()(nn.Conv(8, (3, 3), use_bias=False)(x)))
        y = nn.relu(self.norm()(nn.Conv(4, (1, 1), use_bias=False)(x)))
        x = nn.relu(x + self.norm()(nn.Conv(8, (3, 3), use_bias=False)(y)))
        return nn.Dense(3)(x.mean((1, 2)))


class Concatenated(nn.Module):
    """Dense connections: each layer reads all before it."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        for _ in range(2):
            x = jnp.concatenate([x, nn.relu(nn.Conv(3, (3, 3))(x))], -1)
        return nn.Dense(3)(x.mean((1, 2)))


class Separable(nn.Module):
    """Depthwise, grouped, squeeze and excite."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu6(nn.Conv(6, (1, 1))(x))
        x = nn.relu6(nn.Conv(6, (3, 3), feature_group_count=6)(x))
        x = nn.relu(nn.Conv(8, (1, 1))(x))
        x = nn.relu(nn.Conv(12, (3, 3), feature_group_count=4)(x))
        gate = nn.sigmoid(nn.Dense(12)(nn.relu(nn.Dense(5)(x.mean((1, 2))))))
        return nn.Dense(3)((x * gate[:, None, None]).mean((1, 2)))


class Unet(nn.Module):
    @nn.compact
    def __call__(self, x):
        a = nn.relu(nn.Conv(4, (3, 3))(x))
        b = nn.relu(nn.Conv(5, (3, 3))(nn.max_pool(a, (2, 2), (2, 2))))
        up = nn.relu(nn.ConvTranspose(6, (2, 2), strides=(2, 2))(b))
        return nn.Conv(2, (1, 1))(nn.relu(nn.Conv(3, (3, 3))(jnp.concatenate([a, up], -1))))


class Attention(nn.Module):
    """Pre-norm transformer: tied embedding, grouped queries, remat, a gated MLP."""

    queries: int = 4
    keys: int = 2
    rotary: bool = False

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(11, 8)
        x = embed(tokens)
        for _ in range(2):
            x = nn.remat(Block)(self.queries, self.keys, self.rotary)(x)
        return embed.attend(nn.RMSNorm()(x))


class Block(nn.Module):
    queries: int
    keys: int
    rotary: bool

    @nn.compact
    def __call__(self, x):
        y = nn.RMSNorm()(x)
        q = nn.DenseGeneral((self.queries, 4), use_bias=False)(y)
        k = nn.DenseGeneral((self.keys, 4), use_bias=False)(y)
        v = nn.DenseGeneral((self.keys, 4), use_bias=False)(y)
        q, k = (rotated(q), rotated(k)) if self.rotary else (q, k)
        k, v = (jnp.repeat(t, self.queries // self.keys, axis=2) for t in (k, v))
        x = x + nn.DenseGeneral(8, axis=(-2, -1), use_bias=False)(nn.dot_product_attention(q, k, v))
        y = nn.LayerNorm()(x)
        return x + nn.Dense(8)(nn.silu(nn.Dense(5)(y)) * nn.Dense(5)(y))


def rotated(x):
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None] * 10.0 ** -jnp.arange(half)[None]
    cos, sin = jnp.cos(angle)[None, :, None], jnp.sin(angle)[None, :, None]
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


class FusedHeads(nn.Module):
    """One product for queries, keys and values; heads by reshape."""

    @nn.compact
    def __call__(self, x):
        q, k, v = jnp.split(nn.Dense(3 * 8)(x), 3, -1)
        q, k, v = (t.reshape(*t.shape[:-1], 2, 4) for t in (q, k, v))
        y = nn.dot_product_attention(q, k, v)
        return nn.Dense(3)(y.reshape(*y.shape[:-2], 8))


class Stacked(nn.Module):
    """Layers in a scan, with a residual stream that has a layer of its own before it."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6)(x)
        layers = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return nn.Dense(3)(layers()(x, None)[0])


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(6)(nn.relu(nn.Dense(4)(x))), None


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.RNN(nn.OptimizedLSTMCell(5))(x))


class Experts(nn.Module):
    """Each token goes to one of three experts, sorted by expert for `ragged_dot`, and back."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x)
        tokens = x.reshape(-1, 8)
        routes = nn.softmax(nn.Dense(3)(tokens))
        expert = routes.argmax(-1)
        order, sizes = jnp.argsort(expert), jnp.bincount(expert, length=3)
        up = self.param("up", nn.initializers.normal(), (3, 8, 5))
        down = self.param("down", nn.initializers.normal(), (3, 5, 8))
        y = jax.lax.ragged_dot(nn.relu(jax.lax.ragged_dot(tokens[order], up, sizes)), down, sizes)
        y = jnp.zeros_like(y).at[order].set(y) * routes.max(-1, keepdims=True)
        return nn.Dense(3)(x + y.reshape(x.shape))


class Softmax(nn.Module):
    """A softmax over hidden neurons: a pruned one still counts as exp(0) in the masked network."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.softmax(nn.Dense(6)(x)))


class TwoPass(nn.Module):
    """Layer norm with the variance of what is left after the mean: pruned entries are -mean."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.LayerNorm(use_fast_variance=False)(nn.Dense(6)(x)))


# heads, dimensions of queries and keys, of values, hidden; after the residual stream
HEADS = [(4, 4), (4, 2), (4, 2), (5, 5)]
ATTENTION = [(8, 24), *HEADS, *HEADS]
# keys and values, queries of each of them
GROUPED = [(8, 24), *[(2, 4), (2, 2), (4, 2), (4, 2), (5, 5)] * 2]
# the dimensions of queries and keys are frozen by their positions
ROTARY = [(8, 24), *[(2, 4), (2, 2), (4, 2), (5, 5)] * 2]
BATCH = partial(nn.BatchNorm, use_running_average=True)
NETWORKS = {
    "mlp": Network(Mlp(), (2, 4), [(7, 3), (5, 3)]),
    "flattened": Network(Flattened(), IMAGES, [(5, 7), (6, 3), (7, 3)]),
    "channels first": Network(Flattened(first=True), IMAGES, [(5, 7), (6, 3), (7, 3)]),
    "batch norm": Network(Residual(BATCH), IMAGES, [(8, 12), (4, 6)]),
    "group norm": Network(
        Residual(partial(nn.GroupNorm, num_groups=2)), IMAGES, [(2, 8), (4, 8), (2, 4), (2, 4)]
    ),
    "layer norm": Network(Residual(nn.LayerNorm), IMAGES, [(8, 8), (4, 4)]),
    "concat": Network(Concatenated(), IMAGES, [(4, 5), (3, 4), (3, 3)]),
    "separable": Network(Separable(), IMAGES, [(6, 5), (4, 8), (2, 3), (3, 6), (5, 3)]),
    "unet": Network(Unet(), IMAGES, [(4, 4), (5, 3), (6, 3), (3, 3)]),
    "attention": Network(Attention(4, 4), TOKENS, ATTENTION, table=11),
    "grouped queries": Network(Attention(4, 2), TOKENS, GROUPED, table=11),
    "rotary": Network(Attention(4, 2, rotary=True), TOKENS, ROTARY, table=11),
    "fused heads": Network(FusedHeads(), SEQUENCE, [(2, 3), (4, 2), (4, 3)]),
    "scan": Network(Stacked(), (2, 4), [(6, 6), (4, 3)]),
    "lstm": Network(Recurrent(), SEQUENCE, [(5, 17)]),
    "experts": Network(Experts(), SEQUENCE, [(8, 6), (5, 2)]),
    "softmax": Network(Softmax(), (2, 4), [(6, 3)], exact=False),
    "two-pass norm": Network(TwoPass(), (2, 4), [(6, 5)], exact=False),
}


@lru_cache
def built(name: str):
    """Variables of a network, none of them zero or one, variances positive; and an input."""
    network, rng = NETWORKS[name], np.random.default_rng(0)
    if network.table:
        x = jnp.asarray(rng.integers(0, network.table, network.shape), jnp.int32)
    else:
        x = jnp.asarray(rng.normal(size=network.shape), jnp.float32)
    shapes = jax.eval_shape(network.module.init, jax.random.key(0), x)
    sign = lambda leaf: rng.choice([-1, 1], leaf.shape) if leaf.ndim > 1 else 1
    values = lambda leaf: jnp.asarray(sign(leaf) * rng.uniform(0.1, 0.9, leaf.shape), jnp.float32)
    return jax.tree.map(values, shapes), x
