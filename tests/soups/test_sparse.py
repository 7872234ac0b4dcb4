"""Prune, retrain children of one mask, average: phase after phase, in one program."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp

SPARSITIES = [0.5, 0.75, 0.875]
TARGET = jax.random.normal(jax.random.key(9), (4, 8))


def loss(params, noise):
    return jnp.sum((params["kernel"] - TARGET - 0.3 * noise) ** 2) + jnp.sum(params["bias"] ** 2)


def train(params, masks, variation, steps=4):
    """SGD to targets that differ from child to child, at rates of their own."""
    tx = jp.sparsify(optax.sgd(variation["rate"], 0.9), jp.fixed(masks))

    def step(carry, i):
        params, opt_state = carry
        noise = jax.random.normal(jax.random.fold_in(variation["key"], i), TARGET.shape)
        updates, opt_state = tx.update(jax.grad(loss)(params, noise), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))
    return params


def start(dtype=jnp.float32):
    return {
        "kernel": jax.random.normal(jax.random.key(0), (4, 8)).astype(dtype),
        "bias": jnp.ones(8, dtype),
    }


def variations(phases=3, children=3):
    keys = jax.random.split(jax.random.key(1), (phases, children))
    return {"key": keys, "rate": jnp.broadcast_to(jnp.linspace(0.01, 0.05, children), keys.shape)}


def one_phase(tree, i=0):
    return jax.tree.map(lambda x: x[i], tree)


PHASE = jax.jit(partial(jp.soups.phase, train))  # compiled once for most tests here


def n_zero(kernel):
    return int((kernel == 0).sum())


# --- the program of the design --------------------------------------------------------------------


@pytest.mark.full
def test_a_phase_as_printed():
    def plain_train(tx, params, key):
        def step(carry, i):
            params, opt_state = carry
            noise = jax.random.normal(jax.random.fold_in(key, i), TARGET.shape)
            updates, opt_state = tx.update(jax.grad(loss)(params, noise), opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(4))[0]

    seeds = jax.random.split(jax.random.key(1), 3)
    traces = []

    @jax.jit
    def phase(params, sparsity):
        traces.append(None)
        masks = jp.select(jp.magnitude(jp.kernels(params)), jp.global_threshold, sparsity)
        tx = jp.sparsify(optax.sgd(0.05, 0.9), jp.fixed(masks))
        children = jax.vmap(lambda key: plain_train(tx, jp.apply_masks(params, masks), key)[0])(
            seeds
        )
        return jp.soup(children), children

    params = start()
    for sparsity, zeros in zip(SPARSITIES, (16, 24, 28), strict=True):
        params, children = phase(params, sparsity)
        assert n_zero(params["kernel"]) == zeros
        assert [n_zero(kernel) for kernel in children["kernel"]] == [zeros] * 3
    assert len(traces) == 1  # all phases are one program

    # and in one call
    def by_tx(params, masks, key):
        return plain_train(jp.sparsify(optax.sgd(0.05, 0.9), jp.fixed(masks)), params, key)[0]

    in_one = jp.soups.iterative(by_tx, start(), SPARSITIES, jnp.stack([seeds] * 3))
    np.testing.assert_allclose(in_one.params["kernel"][-1], params["kernel"], rtol=1e-5, atol=1e-6)


# --- laws -----------------------------------------------------------------------------------------


ALL = jax.jit(partial(jp.soups.iterative, train))


@pytest.fixture(scope="module")
def all_phases():
    return ALL(start(), SPARSITIES, variations())


def test_every_phase_has_its_count_and_nothing_revives(all_phases):
    assert all_phases.children["kernel"].shape == (3, 3, 4, 8)
    for i, zeros in enumerate((16, 24, 28)):
        assert (~all_phases.masks["kernel"][i]).sum() == zeros
        assert all_phases.masks["bias"] is None
        for network in (all_phases.params, *(one_phase(all_phases.children["kernel"], i),)):
            kernel = network["kernel"][i] if isinstance(network, dict) else network
            pruned = ~all_phases.masks["kernel"][i]
            assert not jnp.where(pruned, kernel, 0).any()
        if i:
            assert not (all_phases.masks["kernel"][i] & ~all_phases.masks["kernel"][i - 1]).any()


def test_the_average_of_each_phase_is_pruned_next(all_phases):
    for i, sparsity in enumerate(SPARSITIES[1:]):
        score = jnp.abs(all_phases.params["kernel"][i])
        expected = jp.select({"kernel": score}, jp.global_threshold, sparsity)["kernel"]
        np.testing.assert_array_equal(all_phases.masks["kernel"][i + 1], expected)
        mean = all_phases.children["kernel"][i].mean(0)
        np.testing.assert_allclose(all_phases.params["kernel"][i], mean, rtol=1e-5, atol=1e-6)


def test_phases_in_one_scan_are_a_loop_of_phases(all_phases):
    traces = []

    @jax.jit
    def phase(*args, masks):
        traces.append(None)
        return jp.soups.phase(train, *args, masks=masks)

    params, masks = start(), {"kernel": jnp.ones((4, 8), bool), "bias": None}
    for i, sparsity in enumerate(SPARSITIES):
        params, masks, children = phase(params, sparsity, one_phase(variations(), i), masks=masks)
        np.testing.assert_array_equal(masks["kernel"], all_phases.masks["kernel"][i])
        for made, expected in ((params, all_phases.params), (children, all_phases.children)):
            np.testing.assert_allclose(made["kernel"], expected["kernel"][i], rtol=1e-5, atol=1e-6)
    assert len(traces) == 1


def test_a_vmapped_study_is_a_loop_of_studies():
    def study(seed):
        params = start()
        params["kernel"] = params["kernel"] + 0.1 * seed
        return ALL(params, SPARSITIES, variations()).params

    together = jax.vmap(study)(jnp.arange(2.0))
    for i in range(2):
        alone = study(jnp.float32(i))
        np.testing.assert_allclose(together["kernel"][i], alone["kernel"], rtol=1e-5, atol=1e-6)


def test_half_precision_keeps_its_dtype_and_its_zeros():
    done = PHASE(start(jnp.bfloat16), 0.75, one_phase(variations()))
    assert done.params["kernel"].dtype == jnp.bfloat16
    assert n_zero(done.params["kernel"]) == 24


def test_one_child_is_iterative_magnitude_pruning():
    done = PHASE(start(), 0.5, one_phase(variations(1, 1)))
    masks = jp.select(jp.magnitude(jp.kernels(start())), jp.global_threshold, 0.5)
    alone = jax.jit(train)(
        jp.apply_masks(start(), masks), masks, one_phase(one_phase(variations(1, 1)))
    )
    np.testing.assert_allclose(done.params["kernel"], alone["kernel"], rtol=1e-5, atol=1e-6)


def test_nothing_revives_whatever_the_score_and_the_sparsity_say():
    """A score that prefers what is pruned; a sparsity that falls where nobody can know it."""
    smallest_first = lambda params, **_: jax.tree.map(lambda w: -jnp.abs(w), params)
    masks = jp.select(jp.magnitude(jp.kernels(start())), jp.global_threshold, 0.5)
    params = jp.apply_masks(start(), masks)
    phase = jax.jit(partial(jp.soups.phase, train, score=smallest_first))
    for sparsity, zeros in ((0.75, 24), (0.5, 16), (0.25, 16)):
        done = phase(params, sparsity, one_phase(variations()), masks=masks)
        assert int((~done.masks["kernel"]).sum()) == zeros, sparsity
        assert not (done.masks["kernel"] & ~masks["kernel"]).any()
        assert not jnp.where(done.masks["kernel"], 0, done.children["kernel"]).any()


@pytest.mark.full
def test_children_start_under_the_masks_and_keep_them_whatever_training_does():
    masks = jp.select(jp.magnitude(jp.kernels(start())), jp.global_threshold, 0.5)
    seen = []

    def unruly(params, masks, variation):
        """Fills all weights with the sum of those that it is given, pruned ones too."""
        seen.append(params)
        total = params["kernel"].sum()
        return {**params, "kernel": jnp.full((4, 8), total + variation["rate"])}

    own = one_phase(variations())
    children = jp.soups.fork(unruly, start(), masks, own)  # of weights that are not masked yet
    np.testing.assert_array_equal(seen[0]["kernel"], jp.apply_masks(start(), masks)["kernel"])
    total = jnp.where(masks["kernel"], start()["kernel"], 0).sum()
    for child, rate in zip(children["kernel"], own["rate"], strict=True):
        wanted = jnp.where(masks["kernel"], total + rate, 0)
        np.testing.assert_allclose(child, wanted, rtol=1e-6)
    done = jp.soups.phase(unruly, start(), 0.5, own)
    np.testing.assert_array_equal(done.children["kernel"] != 0, jnp.stack([masks["kernel"]] * 3))


# --- behavior ------------------------------------------------------------------------------------


def test_children_differ_by_their_variation_alone():
    key = jax.random.key(2)
    same, faster = (
        PHASE(
            start(), 0.5, {"key": jnp.stack([key] * 3), "rate": jnp.array([0.01, rate, 0.01])}
        ).children["kernel"]
        for rate in (0.01, 0.02)
    )
    np.testing.assert_array_equal(same[0], same[1])
    np.testing.assert_array_equal(faster[0], same[0])
    assert (faster[1] != faster[0]).any()


def test_a_soup_serves_better_than_its_children(all_phases):
    clean = jax.vmap(lambda params: loss(params, jnp.zeros_like(TARGET)))
    for i in range(3):
        of_children = clean(one_phase(all_phases.children, i))
        of_soup = loss(one_phase(all_phases.params, i), jnp.zeros_like(TARGET))
        assert of_soup < of_children.mean()  # a convex loss


def test_the_average_is_a_function():
    def score(params):
        return -loss(params, jnp.zeros_like(TARGET))

    def greedy(children):
        return jp.soups.greedy(children, score).params

    own = one_phase(variations())
    uniform = PHASE(start(), 0.5, own)
    chosen = jax.jit(partial(jp.soups.phase, train, average=greedy))(start(), 0.5, own)
    np.testing.assert_allclose(uniform.children["kernel"], chosen.children["kernel"], rtol=1e-5)
    assert score(chosen.params) >= jax.vmap(score)(chosen.children).max() - 1e-4


def test_with_batch_norm_all_variables_go_through_and_statistics_are_made_anew():
    batches = jax.random.normal(jax.random.key(7), (3, 16, 4))

    def update(variables, batch):
        mean = (batch @ variables["params"]["kernel"]).mean(0)
        return {"batch_stats": {"mean": 0.9 * variables["batch_stats"]["mean"] + 0.1 * mean}}

    def normal_train(variables, masks, variation):
        params = train(variables["params"], masks["params"], variation)
        return {"params": params, "batch_stats": {"mean": jnp.full(8, variation["rate"])}}

    def average(children):
        return jp.analysis.recalibrate(update, jp.soup(children), batches)

    variables = {"params": start(), "batch_stats": {"mean": jnp.zeros(8)}}
    phase = jax.jit(partial(jp.soups.phase, normal_train, average=average))
    done = phase(variables, 0.5, one_phase(variations()))
    assert done.masks["batch_stats"] == {"mean": None}
    assert n_zero(done.params["params"]["kernel"]) == 16
    means = jax.vmap(lambda batch: (batch @ done.params["params"]["kernel"]).mean(0))(batches)
    own = done.params["batch_stats"]["mean"]
    np.testing.assert_allclose(own, means.mean(0), rtol=1e-4, atol=1e-5)


def test_a_random_score_is_asked_once():
    own = one_phase(variations())
    score = jp.random(jax.random.key(3))
    done = jax.jit(partial(jp.soups.phase, train, score=score))(start(), 0.5, own)
    assert n_zero(done.params["kernel"]) == 16
    assert all(n_zero(kernel) == 16 for kernel in done.children["kernel"])


@pytest.mark.parametrize("method", ["gmp", "dpf"])
def test_pruning_during_training_branches_at_its_last_mask(method):
    ramp = optax.polynomial_schedule(0.0, 0.75, power=3, transition_steps=6)
    dense, sgd = start(), optax.sgd(0.02, 0.9)
    if method == "gmp":
        gradual = jp.every(2, jp.prune(jp.magnitude, jp.global_threshold, ramp), stop=6)
        tx = jp.sparsify(sgd, gradual)
    else:
        tx = jp.keep_dense(sgd, jp.every(2, jp.dpf(ramp), stop=6))

    def step(carry, i):
        params, opt_state = carry
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(5), i), TARGET.shape)
        network = jp.apply_masks(params, jp.get_masks(opt_state))
        updates, opt_state = tx.update(jax.grad(loss)(network, noise), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    (params, opt_state), _ = jax.lax.scan(step, (dense, tx.init(dense)), jnp.arange(9))
    masks = jp.get_masks(opt_state)
    assert (method == "dpf") == bool(jnp.where(masks["kernel"], 0, params["kernel"]).any())

    children = jax.jit(partial(jp.soups.fork, train))(params, masks, one_phase(variations()))
    made = jp.soup(children, masks=masks)
    assert n_zero(made["kernel"]) == 24
    jax.tree.map(np.testing.assert_array_equal, made, jp.soup(children))


# --- bad input ------------------------------------------------------------------------------------


def test_zero_or_unequal_children():
    own = one_phase(variations())
    with pytest.raises(ValueError, match="no seeds"):
        jp.soups.phase(train, start(), 0.5, jax.tree.map(lambda x: x[:0], own))
    with pytest.raises(ValueError, match="same number of seeds; 'key' has 3 and 'rate' 2"):
        jp.soups.fork(train, start(), {"kernel": None, "bias": None}, own | {"rate": jnp.ones(2)})


def test_a_train_that_returns_other_than_params():
    def returns_a_pair(params, masks, variation):
        return train(params, masks, variation), masks

    with pytest.raises(ValueError, match="these masks must be like the params"):
        jp.soups.phase(returns_a_pair, start(), 0.5, one_phase(variations()))


def test_masks_sparser_than_the_target():
    own = one_phase(variations())
    sparse = PHASE(start(), 0.75, own)
    message = "a sparsity of 0.75 already, wanted 0.5;.*masks=None"
    with pytest.raises(ValueError, match=message):
        jp.soups.phase(train, sparse.params, 0.5, own, masks=sparse.masks)
    with pytest.raises(ValueError, match=r"pruned, in \[0, 1\); got 90\. For 90%"):
        jp.soups.phase(train, start(), 90.0, own)


@pytest.mark.parametrize(
    ("sparsities", "message"),
    [
        ([0.9, 0.5, 0.95], r"rise from phase to phase: .* got \[0.9, 0.5, 0.95\]"),
        ([0.5, 0.75, 1.0], r"in \[0, 1\); got 1"),
        ([0.5, 0.75], "there are 2 sparsities; got 3 phases of variations"),
        (0.5, "sparsities are one a phase"),
        ([], "sparsities are one a phase"),
    ],
)
def test_sparsities_that_are_no_phases(sparsities, message):
    with pytest.raises(ValueError, match=message):
        jp.soups.iterative(train, start(), sparsities, variations())
