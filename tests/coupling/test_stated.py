"""Couplings: taking neurons keeps the function, and what does not fit is told apart by name."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.coupling import Axis, check_coupling, take

COUPLING = {"hidden": [("Dense_0/kernel", 1), ("Dense_0/bias", 0), ("Dense_1/kernel", 0)]}


def raised(f, kind=ValueError):
    with pytest.raises(kind) as error:
        f()
    return str(error.value)


class Convolutional(nn.Module):
    """Two convolutions, batch norm, a flattening, two dense layers."""

    channels_first: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(5, (3, 3))(x)))
        x = nn.relu(nn.Conv(6, (3, 3), strides=2)(x))
        if self.channels_first:
            x = x.transpose(0, 3, 1, 2)
        x = x.reshape(len(x), -1)
        x = nn.relu(nn.Dense(7)(x))
        return nn.Dense(3)(x)


class Residual(nn.Module):
    """A residual stream of one stage: an inlet, two blocks, an outlet."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6)(x)
        for _ in range(2):
            y = nn.relu(nn.Dense(4)(x))
            x = x + nn.Dense(6)(y)
        return nn.Dense(2)(x)


RESIDUAL = {
    "stream": [
        ("Dense_0/kernel", 1),
        ("Dense_0/bias", 0),
        ("Dense_1/kernel", 0),
        ("Dense_2/kernel", 1),
        ("Dense_2/bias", 0),
        ("Dense_3/kernel", 0),
        ("Dense_4/kernel", 1),
        ("Dense_4/bias", 0),
        ("Dense_5/kernel", 0),
    ],
    "block 0": [("Dense_1/kernel", 1), ("Dense_1/bias", 0), ("Dense_2/kernel", 0)],
    "block 1": [("Dense_3/kernel", 1), ("Dense_3/bias", 0), ("Dense_4/kernel", 0)],
}


def noisy(module, *shape):
    """Variables of a module, none of them zero, one or equal; and an input."""
    x = jax.random.normal(jax.random.key(1), shape)
    variables = module.init(jax.random.key(0), x)
    leaves, treedef = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    drawn = [w + jax.random.uniform(k, w.shape, w.dtype) for k, w in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(treedef, drawn), x


def random_order(groups, seed=0):
    keys = jax.random.split(jax.random.key(seed), len(groups))
    return {g: jax.random.permutation(k, groups[g].size) for k, g in zip(keys, groups, strict=True)}


# --- reordering keeps the function ---------------------------------------------------------------


def assert_keeps_the_function(module, variables, x, coupling):
    groups = check_coupling(coupling, variables)
    moved = take(variables, coupling, random_order(groups))
    changed = [
        (a != b).any()
        for a, b in zip(jax.tree.leaves(variables), jax.tree.leaves(moved), strict=True)
    ]
    assert sum(map(bool, changed)) >= len(changed) - 1  # all but the last bias
    np.testing.assert_allclose(
        module.apply(moved, x), module.apply(variables, x), rtol=1e-4, atol=1e-4
    )
    return groups


def test_of_dense_layers():
    net = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)])
    variables, x = noisy(net, 3, 4)
    coupling = {
        "h": [
            ("params/layers_0/kernel", 1),
            ("params/layers_0/bias", 0),
            ("params/layers_2/kernel", 0),
        ]
    }
    assert assert_keeps_the_function(net, variables, x, coupling)["h"].size == 8


@pytest.mark.full
def test_of_convolutions_that_are_flattened_channels_last():
    net = Convolutional()
    variables, x = noisy(net, 2, 8, 6, 1)
    coupling = jp.analyze(net.apply, variables, x).coupling()
    assert ("params/Dense_0/kernel", 0, 4 * 3, 1) in coupling["params/Conv_1"]
    groups = assert_keeps_the_function(net, variables, x, coupling)
    assert [group.size for group in groups.values()] == [5, 6, 7]


@pytest.mark.full
def test_of_convolutions_that_are_flattened_channels_first():
    net = Convolutional(channels_first=True)
    variables, x = noisy(net, 2, 8, 6, 1)
    coupling = {
        "conv": [
            ("params/Conv_1/kernel", -1),
            ("params/Conv_1/bias", -1),
            Axis("params/Dense_0/kernel", -2, inner=12),
        ]
    }
    moved = take(variables, coupling, random_order(check_coupling(coupling, variables)))
    np.testing.assert_allclose(net.apply(moved, x), net.apply(variables, x), rtol=1e-4, atol=1e-4)


@pytest.mark.full
def test_of_a_residual_network_written_by_hand():
    net = Residual()
    variables, x = noisy(net, 3, 5)
    groups = check_coupling(RESIDUAL, variables["params"])
    assert {name: group.size for name, group in groups.items()} == {
        "stream": 6,
        "block 0": 4,
        "block 1": 4,
    }
    coupling = {
        name: [(f"params/{path}", axis) for path, axis in axes] for name, axes in RESIDUAL.items()
    }
    assert_keeps_the_function(net, variables, x, coupling)


# --- taking some ---------------------------------------------------------------------------------


def test_dead_neurons_can_be_left_out(params):
    dead = jnp.array([0, 3, 5])
    silent = jax.tree.map(lambda w: w, params)
    silent["Dense_1"]["kernel"] = params["Dense_1"]["kernel"].at[dead].set(0)
    kept = jnp.array([1, 2, 4, 6, 7])
    small = take(silent, COUPLING, {"hidden": kept})
    assert jax.tree.map(jnp.shape, small) == {
        "Dense_0": {"kernel": (4, 5), "bias": (5,)},
        "Dense_1": {"kernel": (5, 2), "bias": (2,)},
    }
    f = lambda p, x: (
        jnp.tanh(x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"][None]) @ p["Dense_1"]["kernel"]
    )
    x = jax.random.normal(jax.random.key(3), (3, 4))
    np.testing.assert_allclose(f(small, x), f(silent, x), rtol=1e-5, atol=1e-6)


def test_of_a_flattened_axis():
    rows = {"w": jnp.array([0, 1, 10, 11, 20, 21])}
    # channels last: two of them at three places
    last = take(rows, {"g": [("w", 0, 3)]}, {"g": jnp.array([1])})
    assert last["w"].tolist() == [1, 11, 21]
    # channels first: two of them, each with three places
    first = take(rows, {"g": [("w", 0, 1, 3)]}, {"g": jnp.array([1, 0])})
    assert first["w"].tolist() == [11, 20, 21, 0, 1, 10]


def test_holes_of_masks_fit_anything(params):
    masks = jp.select(jp.magnitude(jp.kernels(params)), jp.uniform, 0.5)
    order = jnp.arange(8)[::-1]
    moved = take(masks, COUPLING, {"hidden": order})
    assert moved["Dense_0"]["bias"] is None
    np.testing.assert_array_equal(moved["Dense_0"]["kernel"], masks["Dense_0"]["kernel"][:, ::-1])
    assert check_coupling({"g": [("Dense_0/bias", 0)]}, masks) == {}


def test_of_numpy_arrays_and_shapes(params):
    arrays = jax.tree.map(np.asarray, params)
    moved = take(arrays, COUPLING, {"hidden": np.arange(8)[::-1]})
    assert isinstance(moved["Dense_0"]["kernel"], np.ndarray)
    shapes = jax.eval_shape(lambda: params)
    assert check_coupling(COUPLING, shapes)["hidden"].size == 8


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "fragments"),
    [
        (
            [("Dense_9/kernel", 0)],
            ["group 'g' names 'Dense_9/kernel', which is no leaf", "'Dense_0/bias', 'Dense_0/ker"],
        ),
        (
            [("Dense_0/kernel", 2)],
            ["group 'g' names axis 2 of 'Dense_0/kernel', which has shape (4, 8)"],
        ),
        ([("Dense_0/bias", -2)], ["axis -2 of 'Dense_0/bias', which has shape (8,)"]),
        (
            [("Dense_0/kernel", 1), ("Dense_1/kernel", 1)],
            [
                "axis 1 of 'Dense_1/kernel' (shape (8, 2)) has size 2",
                "group 'g' has 8 neurons, by axis 1 of 'Dense_0/kernel'",
                "outer=height * width",
            ],
        ),
        (
            [("Dense_0/kernel", 0, 3)],
            ["size 4 = 3 x neurons in group 'g', which 3 does not divide"],
        ),
        (
            [("Dense_0/kernel", 1), ("Dense_0/kernel", -1)],
            ["axis 1 of 'Dense_0/kernel' is named twice, in 'g' and in 'g'"],
        ),
    ],
)
def test_couplings_that_do_not_fit(params, entries, fragments):
    said = raised(lambda: check_coupling({"g": entries}, params))
    for fragment in fragments:
        assert fragment in said


def test_an_axis_of_two_groups(params):
    twice = {"a": [("Dense_0/bias", 0)], "b": [("Dense_0/bias", 0)]}
    said = raised(lambda: check_coupling(twice, params))
    assert "named twice, in 'a' and in 'b'. Each axis has one kind of neurons" in said


@pytest.mark.parametrize(
    "entries",
    [
        [],
        "Dense_0/kernel",
        None,
        ("Dense_0/kernel", 1),
        Axis("Dense_0/kernel", 1),
        [("Dense_0/kernel",)],
        [("Dense_0/kernel", "1")],
        [("Dense_0/kernel", True)],
        [("Dense_0/kernel", 1, 0)],
        [("Dense_0/kernel", 1, 1, 1, 1)],
        [1],
    ],
    ids=repr,
)
def test_entries_that_are_none(params, entries):
    said = raised(lambda: check_coupling({"g": entries}, params), TypeError)
    assert ("coupling: " in said and "'g'" in said and "Dense_0/kernel" in said) or "got 1" in said


def test_no_coupling(params):
    assert "maps names of groups to axes" in raised(lambda: check_coupling([], params), TypeError)
