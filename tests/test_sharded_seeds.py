"""Many seeds, three ways: vmap of whole runs, vmap of each step, and seeds spread over devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from tests.quick import quick

SEEDS, STEPS = 8, 12
X = jax.random.normal(jax.random.key(0), (40, 8))
Y = X @ jax.random.normal(jax.random.key(1), (8, 3))

METHODS = {
    "gmp": lambda key: jp.every(
        3, jp.prune(jp.magnitude, jp.global_threshold, optax.linear_schedule(0.0, 0.8, STEPS))
    ),
    "rigl": lambda key: jp.every(3, jp.itop(jp.rigl(key, 0.7))),
    "set": lambda key: jp.every(3, jp.set(key, 0.7), stop=9),
}
methods = pytest.mark.parametrize("method", quick(METHODS))


def loss(params):
    return jnp.mean(
        (jnp.tanh(X @ params["Dense_0"]["kernel"]) @ params["Dense_1"]["kernel"] - Y) ** 2
    )


def optimizer(method, key):
    return jp.sparsify(optax.adam(1e-2), METHODS[method](key))


def init(method, key):
    keys = jax.random.split(key)
    params = {
        "Dense_0": {"kernel": jax.random.normal(keys[0], (8, 16))},
        "Dense_1": {"kernel": jax.random.normal(keys[1], (16, 3))},
    }
    state = optimizer(method, key).init(params)
    return jp.apply_masks(params, jp.get_masks(state)), state


def step(method, key, params, state):
    updates, state = optimizer(method, key).update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state


def run(method, key):
    def body(carry, _):
        return step(method, key, *carry), None

    carry, _ = jax.lax.scan(body, init(method, key), length=STEPS)
    return carry


@functools.cache
def whole_runs(method):
    return jax.jit(jax.vmap(functools.partial(run, method)))(keys())


def keys():
    return jax.random.split(jax.random.key(7), SEEDS)


def collectives(compiled):
    """What devices tell each other: (operation, how many numbers)."""
    found = re.findall(
        r"= \(?\w+\[([\d,]*)\][^\n]*? (all-reduce|all-gather|all-to-all|collective-\w+)",
        compiled.as_text(),
    )
    return [(op, int(np.prod([int(n) for n in shape.split(",") if n]))) for shape, op in found]


def same(result, wanted):
    (params, state), (own_params, own_state) = result, wanted
    jax.tree.map(np.testing.assert_array_equal, jp.get_masks(state), jp.get_masks(own_state))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), params, own_params
    )


@pytest.mark.full
@methods
def test_a_vmap_of_each_step_equals_a_vmap_of_whole_runs(method):
    carry = jax.jit(jax.vmap(functools.partial(init, method)))(keys())
    each = jax.jit(jax.vmap(functools.partial(step, method)))
    for _ in range(STEPS):
        carry = each(keys(), *carry)
    same(carry, whole_runs(method))


@pytest.mark.full
@methods
@pytest.mark.parametrize("what", [run, step], ids=["runs", "steps"])
def test_seeds_on_their_devices_say_nothing_to_each_other(method, what):
    """Zero collectives with `shard_map`: each device asks only its own seeds what is due."""
    mesh = jax.make_mesh((8,), ("seed",), axis_types=(AxisType.Auto,))
    own = NamedSharding(mesh, P("seed"))
    spread = jax.device_put(keys(), own)
    carry = jax.device_put(jax.vmap(functools.partial(init, method))(keys()), own)
    arguments = (spread,) if what is run else (spread, *carry)
    over_seeds = jax.vmap(functools.partial(what, method))
    on_devices = jax.shard_map(over_seeds, mesh=mesh, in_specs=P("seed"), out_specs=P("seed"))
    with jax.set_mesh(mesh):
        compiled = jax.jit(on_devices).lower(*arguments).compile()
    assert collectives(compiled) == []
    carry = compiled(*arguments)
    for _ in range(0 if what is run else STEPS - 1):
        carry = compiled(spread, *carry)
    for leaf in jax.tree.leaves(carry[0]):
        assert len(leaf.sharding.device_set) == 8 and not leaf.sharding.is_fully_replicated
    same(jax.device_get(carry), whole_runs(method))


@pytest.mark.full
@methods
def test_seeds_that_jit_spreads_share_only_when_to_stop_searching(method):
    """Under `vmap` all lanes search until the last is done: a word or two a pass, no weights."""
    mesh = jax.make_mesh((8,), ("seed",), axis_types=(AxisType.Auto,))
    spread = jax.device_put(keys(), NamedSharding(mesh, P("seed")))
    compiled = jax.jit(jax.vmap(functools.partial(run, method))).lower(spread).compile()
    assert {op for op, _ in collectives(compiled)} <= {"all-reduce"}
    assert all(numbers <= SEEDS for _, numbers in collectives(compiled))
    same(jax.device_get(compiled(spread)), whole_runs(method))
