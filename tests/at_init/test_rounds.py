"""What holds for every method in rounds: counts, one compile, jit and vmap, bad input."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.at_init.rounds import schedule
from jaxprune.losses import _scanned
from tests.at_init import toy

METHODS = {
    "synflow": partial(jp.at_init.synflow, toy.mlp_ones),
    "force": partial(jp.at_init.force, toy.mlp_loss),
    "iter_snip": partial(jp.at_init.iter_snip, toy.mlp_loss),
}
every_method = pytest.mark.parametrize("method", METHODS)
PARAMS = toy.mlp_params(jax.random.key(0))


def n_kept(masks):
    return int(toy.flat(masks).sum())


# --- the schedule --------------------------------------------------------------------------------


def test_the_rounds_of_synflow():
    left = schedule(0.99, 100, 10**6)
    assert [int(left[k - 1]) for k in (1, 50, 100)] == [954_993, 100_000, 10_000]


def test_the_rounds_of_force():
    left = np.asarray(schedule(0.99, 10, 10**4)) / 10**4
    by_hand = [0.631, 0.3981, 0.2512, 0.1585, 0.1, 0.0631, 0.0398, 0.0251, 0.0158, 0.01]
    np.testing.assert_allclose(left, by_hand, atol=1e-12)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.98, 0.9973, 0.999999])
def test_a_traced_sparsity_has_the_same_schedule(sparsity):
    size, known = 3_000_017, np.asarray(schedule(sparsity, 40, 3_000_017))
    traced = np.asarray(jax.jit(lambda s: schedule(s, 40, size))(sparsity))
    assert traced[-1] == known[-1] == size - round(sparsity * size)
    np.testing.assert_allclose(traced, known, rtol=2e-6, atol=2)
    assert (np.diff(traced) <= 0).all()


# --- laws ----------------------------------------------------------------------------------------


@pytest.mark.full
@every_method
def test_counts_are_exact_in_one_program(method):
    prune = METHODS[method]
    prune(PARAMS, 0.5, 7)
    compiled = _scanned._cache_size()
    for seed, sparsity in enumerate((0.0, 0.1, 0.7777, 0.9)):
        masks = prune(toy.mlp_params(jax.random.key(seed)), sparsity, 7)
        assert n_kept(masks) == toy.WEIGHTS - round(sparsity * toy.WEIGHTS)
        assert [layer["bias"] for layer in masks.values()] == [None] * 3
    assert _scanned._cache_size() == compiled


@pytest.mark.full
@every_method
def test_seeds_and_sparsities_under_jit_and_vmap(method):
    prune = lambda key, sparsity: METHODS[method](toy.mlp_params(key), sparsity, 5)
    keys, sparsities = jax.random.split(jax.random.key(1), 3), jnp.array([0.5, 0.8, 0.95])
    lanes = jax.jit(jax.vmap(prune))(keys, sparsities)
    for i in range(3):
        alone = prune(keys[i], float(sparsities[i]))
        same = jax.tree.map(lambda a, b, i=i: (a[i] == b).mean(), lanes, alone)
        assert min(jax.tree.leaves(same)) > 0.98  # products round otherwise in a batch
        own = jax.tree.map(lambda a, i=i: a[i], lanes)
        assert n_kept(own) == n_kept(alone)


@every_method
def test_driven_from_python_it_is_the_same(method):
    masks, stepped = (METHODS[method](PARAMS, 0.9, 4, unroll=u) for u in (False, True))
    jax.tree.map(np.testing.assert_array_equal, masks, stepped)


@every_method
def test_counts_are_exact_in_bfloat16(method):
    params = toy.mlp_params(jax.random.key(0), jnp.bfloat16)
    assert n_kept(METHODS[method](params, 0.9, 5)) == toy.WEIGHTS - round(0.9 * toy.WEIGHTS)


@every_method
def test_what_is_not_prunable_is_left_alone(method):
    masks = METHODS[method](PARAMS, 0.5, 3, jp.matching(exclude="Dense_2/*"))
    assert masks["Dense_2"] == {"kernel": None, "bias": None}
    assert n_kept(masks) == (toy.WEIGHTS - 32) // 2


def test_fixed_takes_them_of_the_first_params():
    masks = METHODS["force"](PARAMS, 0.8, 3)
    state = jp.fixed(lambda params: METHODS["force"](params, 0.8, 3)).init(PARAMS)
    jax.tree.map(np.testing.assert_array_equal, state.masks, masks)


# --- bad input -----------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("rounds", [0, -1, 2.0, True])
def test_rounds_are_a_number_of_times(method, rounds):
    with pytest.raises(ValueError, match=f"{method}: rounds is how many times to prune"):
        METHODS[method](PARAMS, 0.5, rounds)


@every_method
def test_a_sparsity_is_a_fraction(method):
    with pytest.raises(ValueError, match=r"in \[0, 1\); got 98. For 98% write 0.98"):
        METHODS[method](PARAMS, 98.0, 3)


@every_method
def test_an_integer_is_how_many_weights_are_pruned(method):
    masks = METHODS[method](PARAMS, 300, 3)
    assert n_kept(masks) == toy.WEIGHTS - 300
    traced = jax.jit(lambda n: METHODS[method](PARAMS, n, 3))(300)
    assert n_kept(traced) == n_kept(masks)
    with pytest.raises(ValueError, match=f"how many weights of {toy.WEIGHTS} are pruned"):
        METHODS[method](PARAMS, toy.WEIGHTS, 3)


@every_method
def test_nothing_prunable(method):
    with pytest.raises(ValueError, match="nothing is prunable among 'Dense_0/bias'"):
        METHODS[method](PARAMS, 0.5, prunable=lambda params: jax.tree.map(lambda _: None, params))


@pytest.mark.parametrize("method", ["force", "iter_snip"])
def test_an_empty_layer_is_told_of(method):
    with pytest.warns(UserWarning, match="keeps none of its weights"):
        masks = METHODS[method](PARAMS, 1 - 2 / toy.WEIGHTS, 3)
    assert any(jp.at_init.empty_layers(masks).values())


@pytest.mark.parametrize(
    "method",
    [
        jp.at_init.snip,
        jp.at_init.grasp,
        partial(jp.at_init.force, sparsity=0.5),
        partial(jp.at_init.iter_snip, sparsity=0.5),
    ],
    ids=["snip", "grasp", "force", "iter_snip"],
)
def test_scores_that_are_all_zero_rank_nothing(method):
    cut = jax.tree.map(jnp.zeros_like, toy.W)  # both layers: no gradient gets past either
    with pytest.raises(ValueError, match="all scores are 0, and would be ranked by the order"):
        method(toy.loss, cut)
