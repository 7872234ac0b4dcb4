"""The least sum of distortions, beside all choices; and curves that are measured."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

CURVES = {"a": [0, 0.1, 0.3, 0.9, 2], "b": [0, 0.02, 0.05, 0.3, 0.6, 1, 3]}
SCORES = {"a": jnp.ones(4), "b": jnp.ones(6)}


def test_the_worked_example():
    chosen = jp.allocation.least_distortion(CURVES)(SCORES, 0.5)
    assert (4 * chosen["a"], 6 * chosen["b"]) == (2, 3)
    masks = jp.select(
        {"a": jnp.arange(4.0), "b": jnp.arange(6.0)}, jp.allocation.least_distortion(CURVES), 5
    )
    assert (int((~masks["a"]).sum()), int((~masks["b"]).sum())) == (2, 3)


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_best_of_all_choices(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(3, 30, 3)
    curves = {f"l{i}": rng.uniform(size=rng.integers(4, 8)) for i in range(3)}
    scores = {f"l{i}": np.ones(n) for i, n in enumerate(sizes)}
    for sparsity in (0.2, 0.55):
        wanted = np.ceil(sparsity * sizes.sum())
        costs = []
        for places in itertools.product(*(range(len(c) - 1) for c in curves.values())):
            counts = [
                int(p / (len(c) - 1) * n)
                for p, c, n in zip(places, curves.values(), sizes, strict=True)
            ]
            if sum(counts) >= wanted:
                costs.append(sum(c[p] for p, c in zip(places, curves.values(), strict=True)))
        chosen = jp.allocation.least_distortion(curves)(scores, sparsity)
        places = [round(chosen[k] * (len(c) - 1)) for k, c in curves.items()]
        cost = sum(c[p] for p, c in zip(places, curves.values(), strict=True))
        assert cost == pytest.approx(min(costs))


def test_many_weights_are_counted_in_units():
    curves = {k: np.linspace(0, 1, 11) ** 2 for k in "ab"}
    scores = {
        "a": jax.ShapeDtypeStruct((300_000,), jnp.float32),
        "b": jax.ShapeDtypeStruct((700_000,), jnp.float32),
    }
    chosen = jp.allocation.least_distortion(curves)(scores, 0.5)
    assert 0.3 * chosen["a"] + 0.7 * chosen["b"] >= 0.5
    # a large layer gives more for the same distortion
    assert chosen["b"] > chosen["a"] > 0


def test_curves_are_those_of_each_leaf_alone():
    params = {
        "a": {"kernel": jax.random.normal(jax.random.key(0), (3, 4))},
        "b": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)},
    }
    fn = lambda p, x: jnp.tanh(x @ p["a"]["kernel"]) @ p["b"]["kernel"] + p["b"]["bias"][None]
    xs = [jax.random.normal(jax.random.key(i), (5, 3)) for i in range(2)]
    curves = jp.calibration.distortion_curves(fn, params, xs, points=4)
    assert sorted(curves) == ["a/kernel", "b/kernel"]
    first = params["a"]["kernel"]
    for i in range(5):
        kept = np.argsort(np.abs(first).ravel())[3 * i :]
        mask = np.zeros(12, bool)
        mask[kept] = True
        pruned = {
            **params,
            "a": {"kernel": jnp.where(mask.reshape(3, 4), params["a"]["kernel"], 0)},
        }
        wanted = np.mean([np.mean((fn(pruned, x) - fn(params, x)) ** 2) for x in xs])
        assert curves["a/kernel"][i] == pytest.approx(wanted, rel=1e-4, abs=1e-9)
    masks = jp.select(jp.magnitude(jp.kernels(params)), jp.allocation.least_distortion(curves), 0.5)
    assert float(jp.sparsity(masks)) >= 0.5


def test_what_cannot_be_is_told():
    of = jp.allocation.least_distortion
    with pytest.raises(ValueError, match="no curve of 'b'"):
        of({"a": CURVES["a"]})(SCORES, 0.5)
    with pytest.raises(ValueError, match="the curve of 'a' is a list of at least three finite"):
        of({"a": [0, np.nan, 1, 2]})
    with pytest.raises(ValueError, match="the curves reach no 9 of 10 weights"):
        of(CURVES)(SCORES, 0.89)
    with pytest.raises(TypeError, match="chooses outside of jit"):
        jax.jit(lambda s: of(CURVES)(SCORES, s))(0.5)
    with pytest.raises(ValueError, match="points is how many steps, at least 2; got 1"):
        jp.calibration.distortion_curves(lambda p: p, {}, [], points=1)
    with pytest.raises(ValueError, match="batches is empty"):
        jp.calibration.distortion_curves(lambda p: p, {}, [])
