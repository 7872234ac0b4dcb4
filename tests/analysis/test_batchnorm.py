"""Recalibrated statistics are the cumulative average of the batches', whatever the momentum."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.analysis import loss_along, recalibrate


class Net(nn.Module):
    """Two batch norms, each with a different momentum."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(6)(x))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.99)(nn.Dense(4)(nn.relu(x)))
        return nn.Dense(2)(x)


NET = Net()
BATCHES = 3.0 + 5.0 * jax.random.normal(jax.random.key(0), (7, 32, 5))
VARIABLES = dict(NET.init(jax.random.key(1), BATCHES[0]))


def update(variables, x):
    return NET.apply(variables, x, train=True, mutable=["batch_stats"])[1]


def loss(variables):
    return jnp.mean((NET.apply(variables, BATCHES.reshape(-1, 5)) - 1) ** 2)


def by_hand(variables):
    """Statistics of the first norm: its input is known."""
    layer = variables["params"]["Dense_0"]
    inputs = np.asarray(BATCHES, np.float64) @ np.asarray(layer["kernel"])
    inputs += np.asarray(layer["bias"])
    return inputs.mean(1).mean(0), inputs.var(1).mean(0)


def assert_close(a, b, rtol=1e-4):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=1e-5), a, b)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_it_is_the_cumulative_average(wrap):
    new = wrap(lambda v: recalibrate(update, v, BATCHES))(VARIABLES)
    mean, var = by_hand(VARIABLES)
    np.testing.assert_allclose(new["batch_stats"]["BatchNorm_0"]["mean"], mean, rtol=1e-4)
    np.testing.assert_allclose(new["batch_stats"]["BatchNorm_0"]["var"], var, rtol=1e-4)
    assert new["params"] is VARIABLES["params"] or wrap is jax.jit
    assert jax.tree.structure(new) == jax.tree.structure(VARIABLES)


def test_the_statistics_before_do_not_matter():
    other = VARIABLES | {"batch_stats": jax.tree.map(lambda x: 7 * x + 3, VARIABLES["batch_stats"])}
    new, same = (recalibrate(update, v, BATCHES) for v in (VARIABLES, other))
    jax.tree.map(np.testing.assert_array_equal, new["batch_stats"], same["batch_stats"])


def test_it_is_where_a_long_moving_average_goes():
    # each layer has another momentum; both are measured
    v = VARIABLES
    for _ in range(2000):
        v = v | _repeated(v)
    assert_close(recalibrate(update, VARIABLES, BATCHES[:1])["batch_stats"], v["batch_stats"])


@jax.jit
def _repeated(v):
    return dict(update(v, BATCHES[0]))


def test_it_may_be_given_the_statistics_themselves():
    # no moving average: momentum 0
    statistics = lambda v, x: {"batch_stats": {"mean": x.mean(0), "var": x.var(0)}}
    v = {"params": {}, "batch_stats": {"mean": jnp.zeros(5), "var": jnp.ones(5)}}
    new = recalibrate(statistics, v, BATCHES)["batch_stats"]
    assert_close(new, {"mean": BATCHES.mean((0, 1)), "var": BATCHES.var(1).mean(0)})


def test_counters_stay():
    def counting(v, x):
        old = v["state"]
        return {"state": {"mean": 0.5 * old["mean"] + 0.5 * x.mean(0), "count": old["count"] + 1}}

    v = {"params": {}, "state": {"mean": jnp.zeros(5), "count": jnp.int32(3)}}
    new = recalibrate(counting, v, BATCHES)["state"]
    assert int(new["count"]) == 3 and new["count"].dtype == jnp.int32
    np.testing.assert_allclose(new["mean"], BATCHES.mean((0, 1)), rtol=1e-5)


def test_either_rule_gives_a_path():
    other = dict(NET.init(jax.random.key(2), BATCHES[0]))
    a, b = (recalibrate(update, v, BATCHES) for v in (VARIABLES, other))
    _, interpolated = loss_along(loss, a, b, 5)
    _, recalibrated = loss_along(lambda v: loss(recalibrate(update, v, BATCHES)), a, b, 5)
    # at the ends, where the statistics are calibrated already, both rules agree
    np.testing.assert_allclose(recalibrated[::4], interpolated[::4], rtol=1e-5)
    assert (jnp.abs(recalibrated - interpolated)[1:4] > 1e-3 * interpolated[1:4]).all()


@pytest.mark.full
def test_either_rule_over_all_pairs_of_a_stack():
    stack = jax.vmap(lambda key: dict(NET.init(key, BATCHES[0])))(
        jax.random.split(jax.random.key(3), 3)
    )
    recalibrated = lambda v: loss(recalibrate(update, v, BATCHES))
    matrix = jp.pairwise(partial(jp.barrier, recalibrated, points=3), stack)
    assert matrix.shape == (3, 3) and jnp.diag(matrix).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("update", "batches", "fragments"),
    [
        (
            lambda v, x: NET.apply(v, x, mutable=["batch_stats"])[1],
            BATCHES,
            ["update leaves 'batch_stats/BatchNorm_0/mean'", "as before", "train=True"],
        ),
        (lambda v, x: NET.apply(v, x), BATCHES, ["some of ['batch_stats', 'params']; got Shape"]),
        (lambda v, x: {"running": x.mean(0)}, BATCHES, ["got ['running']"]),
        (lambda v, x: {}, BATCHES, ["update returns no running statistics"]),
        (
            update,
            BATCHES[:0],
            ["recalibrate needs arrays (batches, examples, ...)", "got shapes [(0, 32, 5)]"],
        ),
        (update, jnp.float32(1), ["got shapes [()]"]),
        (update, {"x": BATCHES, "y": BATCHES[:2]}, ["got shapes [(7, 32, 5), (2, 32, 5)]"]),
    ],
    ids=["not training", "outputs", "foreign", "nothing", "no batches", "a scalar", "lengths"],
)
def test_what_cannot_be_recalibrated(update, batches, fragments):
    with pytest.raises(ValueError) as error:
        recalibrate(update, VARIABLES, batches)
    for fragment in fragments:
        assert fragment in str(error.value)
