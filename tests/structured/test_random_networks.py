"""Whatever a network is made of, its compacted form computes what the masked one does."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from jax import lax

import jaxprune as jp
from tests.structured.test_compact import both


def conv(h, kernel, groups=1):
    return lax.conv_general_dilated(
        h,
        kernel,
        (1,),
        "SAME",
        dimension_numbers=("NHC", "HIO", "NHC"),
        feature_group_count=groups,
    )


def dense(h, w, n):
    return h @ w(h.shape[-1], n)


def residual(h, w, n):
    return h + (jnp.tanh(dense(h, w, n)) @ w(n, h.shape[-1]) + w(1, 1, h.shape[-1]))


def concat(h, w, n):
    return jnp.concatenate([h, jax.nn.softplus(dense(h, w, n))], -1)


def swap(h, w, n):
    """Two halves, exchanged, and their product."""
    a, b = jnp.split(h[..., : 2 * (h.shape[-1] // 2)], 2, -1)
    return jnp.concatenate([b, a, a * b], -1)[..., : h.shape[-1]]


def interleave(h, w, n):
    parts = h[..., : 2 * (h.shape[-1] // 2)].reshape(*h.shape[:-1], 2, -1)
    return parts.swapaxes(-1, -2).reshape(*h.shape[:-1], -1)


def stacked(h, w, n):
    """Two layers, entry by entry in turn."""
    return jnp.stack([dense(h, w, n), jnp.sin(dense(h, w, n))], -1).reshape(*h.shape[:-1], 2 * n)


def convolution(h, w, n):
    return jax.nn.relu(conv(h, w(3, h.shape[-1], n)) + w(1, 1, n))


def grouped(h, w, n):
    h = dense(h, w, 2 * n)
    return conv(h, w(3, n, 4), 2)


def depthwise(h, w, n):
    return conv(h, w(3, 1, h.shape[-1]), h.shape[-1])


def norm(h, w, n):
    """Layer norm with E[x^2] - E[x]^2, at which a pruned entry counts as zero."""
    mean, square = h.mean(-1, keepdims=True), (h * h).mean(-1, keepdims=True)
    return (h - mean) * lax.rsqrt(square - mean**2 + 1) * w(1, 1, h.shape[-1])


def excite(h, w, n):
    gate = jax.nn.relu(h.mean(1) @ w(h.shape[-1], n)) @ w(n, h.shape[-1])
    return h * jax.nn.sigmoid(gate)[:, None]


def attention(h, w, n):
    heads = lambda: dense(h, w, 2 * n).reshape(*h.shape[:-1], 2, n)
    q, k, v = heads(), heads(), heads()
    weight = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / n**0.5)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weight, v)
    return h + mixed.reshape(*h.shape[:-1], 2 * n) @ w(2 * n, h.shape[-1])


def scanned(h, w, n):
    layers = w(2, h.shape[-1], n), w(2, n, h.shape[-1])
    turn = lambda h, layer: (h + jnp.tanh(h @ layer[0]) @ layer[1], None)
    return lax.scan(turn, h, layers)[0]


def recurrent(h, w, n):
    """Over positions, with a carry of its own."""
    read, keep = w(h.shape[-1], n), w(n, n)

    def turn(state, x):
        state = jnp.tanh(x @ read + state @ keep)
        return state, state

    return lax.scan(turn, jnp.zeros((len(h), n)), h.swapaxes(0, 1))[1].swapaxes(0, 1)


def pooled(h, w, n):
    """Down, a layer there, up again, next to what was: a U."""
    down = lax.reduce_window(h, -jnp.inf, lax.max, (1, 2, 1), (1, 2, 1), "SAME")
    return jnp.concatenate([h, jax.nn.relu(dense(down, w, n) + w(1, 1, n)).repeat(2, 1)], -1)


def remat(h, w, n):
    kernel = w(h.shape[-1], n)
    return jax.checkpoint(lambda h: jax.jit(jax.nn.silu)(h @ kernel))(h)


STEPS = [
    dense, residual, concat, swap, interleave, stacked, convolution, grouped, depthwise, norm,
    excite, attention, scanned, recurrent, pooled, remat,
]  # fmt: skip
NETWORKS = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(2, 5)), min_size=2, max_size=5)


@cache
def input_of(seed):
    return jax.random.normal(jax.random.key(seed), (2, 4, 3))


def network(steps):
    """The function of these steps, and its params; the first layer and the last are fixed."""
    params, rng = {}, np.random.default_rng(0)

    def fn(p, x):
        names = iter(range(100))

        def w(*shape):
            name = f"w{next(names)}"
            if p is None:
                params[name] = np.float32(rng.normal(size=shape) / np.sqrt(shape[-2]))
            return (params if p is None else p)[name]

        h = x @ w(3, 6)
        for step, n in steps:
            h = step(h, w, n)
        return h.reshape(len(h), -1) @ w(h.shape[1] * h.shape[2], 3)

    jax.eval_shape(lambda x: fn(None, x), input_of(0))
    return fn, params


def check(steps, seed, empty):
    """The law, for neurons that `seed` draws; of one group none, if `empty`."""
    (fn, params), x, rng = network(steps), input_of(0), np.random.default_rng(seed)
    structure = jp.analyze(fn, params, x)
    assume(structure.groups)  # a reshape that cuts across segments may freeze all
    assert not structure.unknown
    kept = {name: rng.random(group.size) < 0.6 for name, group in structure.groups.items()}
    for own in kept.values():
        own[rng.integers(own.size)] = True
    if empty is not None:
        kept[rng.choice(list(kept))][:] = False
        try:
            kept = empty(structure, kept)
        except ValueError as error:
            assert "depends on no input any more" in str(error)
            return
    if not structure.inexact:
        masked, compacted = both(fn, structure, params, kept, x)
        scale = float(abs(masked).max()) + 1e-3
        np.testing.assert_allclose(compacted / scale, masked / scale, atol=2e-5)


WAYS = st.sampled_from([None, jp.structured.collapse_emptied, jp.structured.remove_emptied])
SAME_EVERY_TIME = {
    "derandomize": True,
    "deadline": None,
    "database": None,
    "phases": [Phase.generate, Phase.shrink],
}


@pytest.mark.full
@settings(max_examples=30, **SAME_EVERY_TIME)
@given(NETWORKS, st.integers(0, 99), WAYS)
def test_compacted_is_masked(steps, seed, empty):
    check(steps, seed, empty)


@pytest.mark.full
@settings(max_examples=100, suppress_health_check=list(HealthCheck), **SAME_EVERY_TIME)
@given(
    st.lists(st.tuples(st.sampled_from(STEPS), st.integers(2, 5)), min_size=3, max_size=8),
    st.integers(0, 999),
    WAYS,
)
def test_larger_ones(steps, seed, empty):
    check(steps, seed, empty)
