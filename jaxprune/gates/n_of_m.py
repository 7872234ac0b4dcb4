"""Gates of blocks that choose exactly n of every m: a learned depth without a budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.gates.concrete import through
from jaxprune.gates.gate import Gate, Gates, Logits, check_positive, check_sample_key, drawn
from jaxprune.trees import map_scored


def choices(n: int, m: int) -> np.ndarray:
    """All ways to keep n of m blocks: bool (m! / (n! (m - n)!), m), True = kept.

    The first blocks come first.

    Raises:
      ValueError: unless 0 < n < m are integers, with at most 10,000 ways.

    >>> choices(1, 2).astype(int)
    array([[1, 0],
           [0, 1]])
    """
    _check("choices", n, m)
    rows = list(itertools.combinations(range(m), n))
    ways = np.zeros((len(rows), m), bool)
    for way, kept in zip(ways, rows, strict=True):
        way[list(kept)] = True
    return ways


def depth_logits(blocks: Sequence[str], n: int, m: int, logit: float = 0.0) -> jax.Array:
    """Logits for `n_of_m`: float32 (len(blocks) / m, ways), one row for every m blocks in a row.

    Args:
      blocks: the names of the blocks, in the order of the network.
      n: how many of every m blocks stay.
      m: the number of blocks that share a choice; it divides the number of blocks.
      logit: the value of all logits.

    Raises:
      ValueError: if m does not divide the number of blocks, or n and m are no choice.
    """
    ways = len(choices(n, m))
    if len(blocks) % m or not len(blocks):
        divisors = [i for i in range(2, len(blocks) + 1) if len(blocks) % i == 0]
        raise ValueError(
            f"depth_logits: m={m} does not divide the {len(blocks)} blocks. "
            f"Take an m of {divisors}, or leave out blocks that always stay."
        )
    return jnp.full((len(blocks) // m, ways), logit, jnp.float32)


def n_of_m(n: int, m: int, temperature: Any = 1.0, scale: Any = 100.0, hard: bool = True) -> Gate:
    """One choice among all ways to keep n of m blocks: a categorical variable, by Gumbel softmax.

        y = softmax((scale s + Gumbel noise) / temperature),   gates = y @ choices(n, m)

    A leaf of logits (..., ways) gives gates (..., m). The gates of m blocks always sum to n, so the
    depth is exact: there is no penalty and no budget. With `structured.apply_block_gates`:

        gate = n_of_m(2, 4, temperature(step))
        kept = gate.sample(key, logits)                   # logits = depth_logits(blocks, 2, 4)
        params = apply_block_gates(structure, params, dict(zip(blocks, kept.ravel())))

    TinyFusion trains the weights (or `reparam.lora` of them) together with the logits, so that a
    choice is judged by how well it can be tuned. Its settings: scale 100, a temperature that falls
    from 4 to 0.1, logits at ten times the rate of the weights, without weight decay, and a decision
    by the average of the logits (`optax.incremental_update`).

    Args:
      n, m: how many of how many blocks stay.
      temperature: above 0; may be traced, as of a schedule.
      scale: above 0; what multiplies the logits.
      hard: samples are exactly 0 or 1, with the gradient of the soft ones.

    Returns:
      A `Gate`. `deterministic` is the most probable choice (the first of equal ones), `p_open` the
      probability that a block stays.

    Raises:
      ValueError: unless 0 < n < m, and temperature and scale are above 0; in its functions, for
        logits of another number of ways.

    >>> import jax.numpy as jnp
    >>> logits = jnp.array([0., 0., .02, 0., 0., 0.])      # the third way: blocks 0 and 3
    >>> n_of_m(2, 4).deterministic(logits)
    Array([1., 0., 0., 1.], dtype=float32)

    Reference: Fang et al., 2025, TinyFusion: Diffusion Transformers Learned Shallow.
    """
    check_positive("n_of_m", "temperature", temperature)
    check_positive("n_of_m", "scale", scale)
    ways = jnp.asarray(choices(n, m), jnp.float32)

    def blocks(y: jax.Array) -> jax.Array:
        return jnp.clip(y @ ways, 0.0, 1.0)  # a sum of probabilities may round above 1

    def checked(s: jax.Array) -> jax.Array:
        if not s.ndim or s.shape[-1] != len(ways):
            raise ValueError(
                f"n_of_m({n}, {m}) has {len(ways)} choices; got logits of shape {s.shape}, whose "
                f"last axis is not {len(ways)}. depth_logits(blocks, {n}, {m}) makes them."
            )
        return s * scale

    def one_hot(a: jax.Array) -> jax.Array:
        return jax.nn.one_hot(jnp.argmax(a, -1), a.shape[-1], dtype=jnp.float32)

    def one(key: jax.Array, s: jax.Array) -> jax.Array:
        a = (checked(s) + jax.random.gumbel(key, s.shape, jnp.float32)) / temperature
        soft = jax.nn.softmax(a)
        return blocks(through(one_hot(a), soft) if hard else soft)

    def sample(key: jax.Array, logits: Logits) -> Gates:
        check_sample_key("n_of_m", key)
        return drawn(one, key, logits)

    return Gate(
        sample,
        deterministic=lambda logits: map_scored(lambda s: blocks(one_hot(checked(s))), logits),
        p_open=lambda logits: map_scored(lambda s: blocks(jax.nn.softmax(checked(s))), logits),
    )


def _check(what: str, n: int, m: int) -> None:
    integers = all(isinstance(x, int) and not isinstance(x, bool) for x in (n, m))
    if not integers or not 0 < n < m:
        raise ValueError(f"{what} keeps n of m blocks, 0 < n < m integers; got n={n}, m={m}.")
    if (ways := math.comb(m, n)) > 10_000:
        raise ValueError(
            f"{what}: there are {ways:,} ways to keep {n} of {m} blocks. Choose among fewer blocks "
            "at once, such as 2 of every 4."
        )
