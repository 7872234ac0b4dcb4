"""OBSPA: the update is the least-squares optimum, and networks move less with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprune as jp
from recipes.common.models import decoder

obspa = jp.calibration.obspa


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("gone", range(3))
def test_the_error_is_the_score_and_the_least_squares_optimum(gone):
    """One neuron of three goes, of which the last two have nearly equal activations."""
    x = np.asarray(normal(0, 50, 3), np.float64)
    x[:, 2] = x[:, 1] + 0.1 * x[:, 2]
    weight = np.asarray(normal(1, 3, 2), np.float64)
    params = {"a": jnp.eye(3), "b": jnp.asarray(weight, jnp.float32)}
    x32 = jnp.asarray(x, jnp.float32)
    structure = jp.analyze(lambda p, x: x @ p["a"] @ p["b"], params, x32)
    keep = np.arange(3) != gone
    new = obspa(structure, params, {"a": keep}, [x32[:20], x32[20:]], 1e-7)["b"]
    assert (np.asarray(new)[gone] == 0).all()
    error = np.square(x @ (weight - np.asarray(new, np.float64))).sum() / 50
    inverse = np.linalg.inv(x.T @ x / 50)
    score = np.square(weight[gone]).sum() / inverse[gone, gone]
    best = np.linalg.lstsq(x[:, keep], x @ weight, rcond=None)[0]
    assert error == pytest.approx(score, rel=1e-3)
    np.testing.assert_allclose(np.asarray(new)[keep], best, rtol=1e-3, atol=1e-4)
    plain = np.square(x[:, [gone]] @ weight[[gone]]).sum() / 50
    assert error < (0.1 if gone else 1.0) * plain


def dense():
    params = {"a": normal(0, 8, 24), "bias": normal(1, 24), "b": normal(2, 24, 5)}
    fn = lambda p, x: jax.nn.relu(x @ p["a"] + p["bias"][None]) @ p["b"]
    return fn, params, normal(3, 200, 8), normal(4, 200, 8), ["a"]


def conv():
    def fn(p, x):
        for name in "ab":
            x = jax.nn.relu(lax.conv(x, p[name], (1, 1), "SAME"))
        return x.mean((2, 3)) @ p["c"]

    params = {"a": normal(0, 12, 2, 3, 3), "b": normal(1, 8, 12, 3, 3), "c": normal(2, 8, 4)}
    return fn, params, normal(3, 12, 2, 5, 5), normal(4, 12, 2, 5, 5), ["a", "b"]


def text():
    size = decoder.Size(layers=1, width=16, heads=4, queries=1, dims=4, hidden=24)
    module = decoder.Decoder(11, size)
    tokens, others = (jax.random.randint(jax.random.key(i), (16, 12), 0, 11) for i in (3, 4))
    params = module.init(jax.random.key(0), tokens)["params"]
    params = jax.tree.map(lambda x: 2 * x, params)  # so that the branches count
    return (
        lambda p, x: module.apply({"params": p}, x),
        params,
        tokens,
        others,
        ["*/gate", "*.heads"],
    )


NETWORKS = {"dense": dense, "conv": conv, "decoder": text}


@pytest.mark.parametrize("name", ["dense", "conv", pytest.param("decoder", marks=pytest.mark.full)])
def test_outputs_move_less_with_the_update(name):
    fn, params, x, other, groups = NETWORKS[name]()
    structure = jp.analyze(fn, params, x)
    scores = jp.structured.per_group(structure, prunable=lambda params: params)(params)
    kept = jp.pick(structure, scores, 0.5, jp.uniform, groups=groups)
    new = obspa(structure, params, kept, [x])
    masks = jp.structured.masks(structure, kept)
    jax.tree.map(np.testing.assert_array_equal, new, jp.apply_masks(new, masks))
    assert all(
        a.dtype == b.dtype for a, b in zip(*map(jax.tree.leaves, (new, params)), strict=True)
    )
    small, plain = (jp.compact(structure, p, kept) for p in (new, params))
    moved = lambda net: float(jnp.square(net.fn(net.params, other) - fn(params, other)).mean())
    assert moved(small) < 0.8 * moved(plain)
    np.testing.assert_allclose(small.fn(small.params, x), fn(new, x), rtol=1e-4, atol=1e-4)
    if name == "dense":  # noise of another scale will do
        noise = obspa(structure, params, kept, [2 * normal(9, 500, 8)])
        assert moved(jp.compact(structure, noise, kept)) < 0.8 * moved(plain)


def test_all_kept_changes_nothing():
    fn, params, x, *_ = dense()
    structure = jp.analyze(fn, params, x)
    found = obspa(structure, params, {"a": np.ones(24, bool)}, [x])
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_layers_of_a_scan_are_updated_each_by_itself():
    def fn(params, x):
        layer = lambda x, p: (x + jnp.tanh(x @ p["up"]) @ p["down"], None)
        return lax.scan(layer, x, params)[0]

    params = {"up": normal(0, 3, 6, 10), "down": normal(1, 3, 10, 6)}
    x = normal(2, 40, 6)
    structure = jp.analyze(fn, params, x)
    (group,) = [name for name, members in structure.groups.items() if members.size == 10]
    kept = {group: np.arange(10) < 7}
    found = obspa(structure, params, kept, [x])["down"]
    for i in range(3):
        layer = jax.tree.map(lambda w, i=i: w[i], params)
        hidden = jnp.tanh(x @ layer["up"])
        h = hidden.T @ hidden / 40
        h = h + 0.01 * jnp.diag(h).mean() * jnp.eye(10)
        more = jnp.linalg.solve(h[:7, :7], h[:7, 7:] @ layer["down"][7:])
        np.testing.assert_allclose(found[i, :7], layer["down"][:7] + more, rtol=2e-3, atol=2e-3)
        x = x + hidden @ layer["down"]


def test_a_leaf_that_is_read_otherwise_keeps_its_weights():
    params = {"table": normal(0, 7, 6), "a": normal(1, 6, 6)}
    x = jnp.arange(7)
    fn = lambda p, x: (jnp.tanh(p["table"][x]) @ p["a"]) @ p["table"].T
    structure = jp.analyze(fn, params, x)
    name = next(iter(structure.groups))
    kept = {name: np.arange(6) != 2}
    found = obspa(structure, params, kept, [x])
    masked = jp.apply_masks(params, jp.structured.masks(structure, kept))
    np.testing.assert_array_equal(found["table"], masked["table"])


def test_mistakes():
    fn, params, x, *_ = dense()
    structure = jp.analyze(fn, params, x)
    kept = {"a": np.arange(24) < 12}
    with pytest.raises(ValueError, match="batches is empty"):
        obspa(structure, params, kept, [])
    with pytest.raises(ValueError, match="damping must be positive; got 0"):
        obspa(structure, params, kept, [x], damping=0)
    with pytest.raises(ValueError, match="'b' have nan or inf in batch 1"):
        obspa(structure, params, kept, [x, x.at[0, 0].set(jnp.nan)])
    with pytest.raises(ValueError, match="no group 'z'"):
        obspa(structure, params, {"z": np.ones(3, bool)}, [x])
