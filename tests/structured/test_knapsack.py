"""Blocks by what the outputs lose: numbers by hand, and all sets of small cases."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.structured import knapsack, moment_changes, output_losses


@pytest.mark.parametrize("seed", range(5))
def test_no_other_set_is_better(seed):
    rng = np.random.default_rng(seed)
    names = list("abcdefgh")
    losses = dict(zip(names, rng.integers(0, 20, 8) / 4, strict=True))
    sizes = dict(zip(names, rng.integers(1, 12, 8).tolist(), strict=True))
    sum_of = lambda values, chosen: sum(values[name] for name in chosen)
    every = [c for n in range(9) for c in itertools.combinations(names, n)]
    for least in (0, 1, 9, 20, sum(sizes.values())):
        chosen = knapsack(losses, sizes, least)
        best = min(sum_of(losses, c) for c in every if sum_of(sizes, c) >= least)
        assert sum_of(sizes, chosen) >= least and sum_of(losses, chosen) == best


def fn(params, x):
    for name in ("b0", "b1", "b2"):
        x = x + jnp.tanh(x @ params[name]["up"]) @ params[name]["down"]
    return x @ params["head"]


def test_losses_are_what_the_outputs_lose():
    keys = iter(jax.random.split(jax.random.key(0), 8))
    of = lambda *shape: jax.random.normal(next(keys), shape)
    params = {f"b{i}": {"up": of(4, 6), "down": of(6, 4)} for i in range(3)} | {"head": of(4, 2)}
    params["b1"]["down"] = 0.01 * params["b1"]["down"]
    x = of(10, 4)
    structure = jp.analyze(fn, params, x)
    blocks = jp.structured.removable_blocks(structure, ["b0", "b1", "b2"])
    losses = output_losses(structure, params, blocks, [x[:5], x[5:]])
    for name, loss in losses.items():
        small = jp.compact(structure, params, jp.structured.remove_blocks(structure, [name]))
        wanted = jnp.square(small.fn(small.params, x) - fn(params, x)).mean()
        assert loss == pytest.approx(float(wanted), rel=1e-4)
    assert knapsack(losses, dict.fromkeys(blocks, 48), 1) == ["b1"]
    with pytest.raises(ValueError, match="batches is empty"):
        output_losses(structure, params, blocks, [])
    with pytest.raises(ValueError, match="without block 'b0'"):
        output_losses(structure, params, blocks, [x.at[0, 0].set(jnp.nan)])


def test_changes_of_moments_by_hand():
    """Two examples, 3 and 5, to which a block adds their negatives times two: -3 and -5."""
    fn = lambda p, x: x + x @ p["block"]["w"]
    params, x = {"block": {"w": jnp.array([[-2.0]])}}, jnp.array([[3.0], [5.0]])
    structure = jp.analyze(fn, params, x)
    of = lambda batches: moment_changes(structure, params, ["block"], batches)
    assert of([x]) == of([x[:1], x[1:]]) == {"block": pytest.approx(8.0)}  # -4 and 1 -> 4 and 1
    symmetric = jnp.array([[-1.0], [1.0]])
    assert of([symmetric]) == {"block": 0.0}  # other outputs, of the same mean and deviation
    assert output_losses(structure, params, ["block"], [symmetric]) == {"block": 4.0}
    with pytest.raises(ValueError, match="at least two examples; batches have 1"):
        of([x[:1]])
    with pytest.raises(ValueError, match="without block 'block'"):
        of([x.at[0].set(jnp.nan)])


def test_mistakes():
    with pytest.raises(ValueError, match=r"\['b'\] is in one only"):
        knapsack({"a": 1.0}, {"a": 1, "b": 2}, 1)
    with pytest.raises(ValueError, match="have size 3, and at least 4"):
        knapsack({"a": 1.0}, {"a": 3}, 4)
    for loss, size in ((-1.0, 2), (float("nan"), 2), (1.0, 0)):
        with pytest.raises(ValueError, match="block 'a' has loss"):
            knapsack({"a": loss}, {"a": size}, 1)
