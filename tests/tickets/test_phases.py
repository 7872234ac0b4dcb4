"""Iterative pruning: the published rates, and phases that are what a loop by hand is."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp

PHASES = 3


# --- how much in each phase ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sparsity", "phases", "rate", "after"),
    [
        (0.9, 3, 0.5358, [0.5358, 0.7846, 0.9]),
        (0.98, 3, 0.7286, [0.7286, 0.9263, 0.98]),
        (0.95, 5, 0.4507, [0.4507, 0.6983, 0.8343, 0.9090, 0.95]),
    ],
)
def test_rates_by_hand(sparsity, phases, rate, after):
    assert jp.tickets.rate(sparsity, phases) == pytest.approx(rate, abs=5e-5)
    np.testing.assert_allclose(jp.tickets.sparsities(sparsity, phases), after, atol=5e-5)
    schedule = jp.tickets.schedule(sparsity, phases)
    np.testing.assert_allclose([schedule(k) for k in range(phases)], after, atol=5e-5)
    assert schedule(phases + 5) == np.float32(sparsity)


def test_a_fifth_a_round():
    after = [jp.tickets.sparsity_after(0.2, n) for n in (1, 5, 10, 15, 20)]
    np.testing.assert_allclose(after, [0.2, 0.6723, 0.8926, 0.9648, 0.9885], atol=5e-5)
    assert jp.tickets.rate(jp.tickets.sparsity_after(0.2, 7), 7) == pytest.approx(0.2)


def test_the_last_sparsity_is_exact():
    for phases in range(1, 30):
        assert jp.tickets.sparsities(0.9, phases)[-1] == 0.9


def test_phases_that_start_where_others_ended():
    whole = jp.tickets.sparsities(0.9, 4)
    np.testing.assert_allclose(jp.tickets.sparsities(0.9, 2, start=whole[1]), whole[2:])
    assert jp.tickets.rate(0.5, 3, start=0.5) == 0


def test_sparsities_may_be_traced():
    after = jax.jit(jax.vmap(lambda s: jp.tickets.sparsities(s, 3)))(jnp.array([0.9, 0.98]))
    np.testing.assert_allclose(after[1], jp.tickets.sparsities(0.98, 3), rtol=1e-6)
    assert jax.jit(lambda s: jp.tickets.schedule(s, 3)(7))(0.9) == np.float32(0.9)


# --- the phases ----------------------------------------------------------------------------------


def initial(key=0):
    keys = jax.random.split(jax.random.key(key), 3)
    return {
        "a": {"kernel": jax.random.normal(keys[0], (8, 12)), "bias": jnp.zeros(12)},
        "b": {"kernel": jax.random.normal(keys[1], (12, 4)), "bias": jnp.zeros(4)},
        "norm": {"scale": jax.random.normal(keys[2], (4,))},
    }


SIZE = 8 * 12 + 12 * 4


def fit(tx, params, key=0, steps=5):
    """A few steps towards other weights, which `key` draws."""
    goal = initial(key + 100)

    def step(carry, _):
        params, opt_state = carry
        grads = jax.tree.map(lambda w, g: w - g, params, goal)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), None, steps)
    return params


def train(phase):
    tx = jp.sparsify(optax.adam(0.1), jp.fixed(phase.masks))
    params = fit(tx, phase.params)
    return params, (params, phase)


def imp(sparsity=0.8, phases=PHASES, allocation=jp.global_threshold):
    return jp.prune(jp.magnitude, allocation, jp.tickets.schedule(sparsity, phases))


@pytest.fixture(scope="module")
def dense():
    """(early, trained): weights at step 2 and at step 5 of a dense training."""
    tx = optax.adam(0.1)
    return fit(tx, initial(), steps=2), fit(tx, initial())


@pytest.fixture(scope="module")
def studies(dense):
    """What `iterative` returns, without and with rewinding to the early weights."""
    early, trained = dense
    study = jax.jit(partial(jp.tickets.iterative, train, transform=imp(), phases=PHASES))
    return {rewinds: study(trained, rewind_to=early if rewinds else None) for rewinds in (0, 1)}


def by_hand(params, rewind_to=None, phases=PHASES):
    """The same in numpy: sort what is left, drop, rewind, and train."""
    masks = {name: np.ones(params[name]["kernel"].shape, bool) for name in "ab"}
    seen = []
    for sparsity in jp.tickets.sparsities(0.8, phases):
        flat = np.concatenate(
            [np.where(masks[n], np.abs(params[n]["kernel"]), -1).ravel() for n in "ab"]
        )
        kept = np.zeros(SIZE, bool)
        kept[np.argsort(-flat, kind="stable")[: SIZE - round(sparsity * SIZE)]] = True
        masks = {"a": kept[:96].reshape(8, 12), "b": kept[96:].reshape(12, 4)}
        full = {
            "a": {"kernel": masks["a"], "bias": None},
            "b": {"kernel": masks["b"], "bias": None},
            "norm": {"scale": None},
        }
        start = jp.apply_masks(params if rewind_to is None else rewind_to, full)
        params = fit(jp.sparsify(optax.adam(0.1), jp.fixed(full)), start)
        seen.append((params, full))
    return seen


def assert_close(a, b):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), a, b)


@pytest.mark.full
@pytest.mark.parametrize("rewinds", [0, 1])
def test_it_is_the_loop_by_hand(dense, studies, rewinds):
    early, trained = dense
    params, masks, (each, phases) = studies[rewinds]
    for k, (there, own) in enumerate(by_hand(trained, early if rewinds else None)):
        assert_close(jax.tree.map(lambda x, k=k: x[k], each), there)
        got = jax.tree.map(lambda x, k=k: x[k], phases.masks)
        jax.tree.map(np.testing.assert_array_equal, got, own)
    jax.tree.map(np.testing.assert_array_equal, masks, got)
    assert_close(params, there)


def test_what_a_phase_says(dense, studies):
    _, trained = dense
    _, _, (each, phases) = studies[1]
    assert phases.number.tolist() == [0, 1, 2]
    sparsities = jp.tickets.sparsities(0.8, PHASES)
    np.testing.assert_allclose(jax.vmap(jp.sparsity)(phases.masks), sparsities, atol=0.5 / SIZE)
    left = np.array([SIZE, *[SIZE - round(s * SIZE) for s in sparsities]])
    np.testing.assert_allclose(phases.pruned, 1 - left[1:] / left[:-1], rtol=1e-5)
    before = jax.tree.map(lambda w, e: jnp.concatenate([w[None], e[:-1]]), trained, each)
    jax.tree.map(np.testing.assert_array_equal, phases.before, before)


def test_rewinding_takes_all_params_back_to_the_stored_ones(dense, studies):
    early, _ = dense
    _, _, (_, phases) = studies[1]
    for k in range(PHASES):
        own = jax.tree.map(lambda x, k=k: x[k], (phases.params, phases.masks))
        jax.tree.map(np.testing.assert_array_equal, own[0], jp.apply_masks(early, own[1]))
    assert (phases.params["a"]["bias"] == early["a"]["bias"][None]).all()  # biases too
    assert (phases.params["norm"]["scale"] == early["norm"]["scale"][None]).all()


def test_masks_only_shrink_and_weights_stay_zero(studies):
    _, _, (each, phases) = studies[0]
    for name in "ab":
        mask = np.asarray(phases.masks[name]["kernel"])
        assert not (mask[1:] & ~mask[:-1]).any()
        assert not np.asarray(each[name]["kernel"])[~mask].any()


def test_zeros_that_survive_rank_above_what_is_pruned():
    """Ties at zero: a threshold on |w * m| would take weights back in the place of others."""
    zeros = {"kernel": jnp.zeros((4, 5))}
    keep = lambda phase: (phase.params, phase.masks["kernel"])
    _, _, masks = jp.tickets.iterative(keep, zeros, imp(0.8, 4), 4)
    kept = [20 - round(s * 20) for s in jp.tickets.sparsities(0.8, 4)]
    for mask, n in zip(masks.reshape(4, -1), kept, strict=True):
        np.testing.assert_array_equal(mask, np.arange(20) < n)


def test_by_layer_the_counts_are_each_layer_s():
    keep = lambda phase: (phase.params, None)
    _, masks, _ = jp.tickets.iterative(keep, initial(), imp(0.75, 4, jp.uniform), 4)
    assert int(masks["a"]["kernel"].sum()) == 24 and int(masks["b"]["kernel"].sum()) == 12
    exempt = jp.per_layer({"b/*": 0.0}, rest=jp.global_threshold)
    _, masks, _ = jp.tickets.iterative(keep, initial(), imp(0.75, 4, exempt), 4)
    assert int(masks["a"]["kernel"].sum()) == 24 and masks["b"]["kernel"].all()


def test_pruning_to_zero_trains_dense_first():
    """With the initial weights and a first phase of 0, the first training is a phase too."""
    sparsities = jnp.array([0.0, 0.5, 0.75])
    lottery = jp.prune(
        jp.magnitude, jp.global_threshold, lambda phase: sparsities[jnp.minimum(phase, 2)]
    )
    start = initial()
    _, _, (each, phases) = jp.tickets.iterative(train, start, lottery, 3, rewind_to=start)
    assert float(phases.pruned[0]) == 0
    trained = jax.tree.map(lambda x: x[0], each)
    assert_close(trained, fit(optax.adam(0.1), start))
    mask = jp.select(jp.magnitude(jp.kernels(trained)), jp.global_threshold, 0.5)
    np.testing.assert_array_equal(phases.masks["a"]["kernel"][1], mask["a"]["kernel"])


def test_phases_start_from_given_masks():
    held = {"a": {"kernel": jnp.arange(96).reshape(8, 12) % 2 == 0, "bias": None}}
    held |= {"b": {"kernel": jnp.ones((12, 4), bool), "bias": None}, "norm": {"scale": None}}
    further = jp.prune(
        jp.magnitude, jp.global_threshold, jp.tickets.schedule(0.8, 2, start=48 / SIZE)
    )
    keep = lambda phase: (phase.params, phase.masks)
    _, masks, _ = jp.tickets.iterative(keep, initial(), jp.chain(jp.fixed(held), further), 2)
    assert not (masks["a"]["kernel"] & ~held["a"]["kernel"]).any()
    assert int(sum(m.sum() for m in jax.tree.leaves(masks))) == SIZE - round(0.8 * SIZE)


def test_the_same_loop_runs_sap():
    keep = lambda phase: (phase.params, phase.pruned)
    _, masks, pruned = jp.tickets.iterative(keep, initial(), jp.sap(), 4)
    assert (pruned > 0).all() and 0 < float(jp.sparsity(masks)) < 1
    once = jax.jit(lambda p: jp.sap().update(jp.sap().init(p), p).masks)(initial())
    assert float(pruned[0]) == pytest.approx(float(jp.sparsity(once)), abs=1e-6)


# --- laws ----------------------------------------------------------------------------------------


@pytest.mark.full
def test_jit_and_vmap_change_nothing():
    def study(key, sparsity):
        start = initial(key)
        return jp.tickets.iterative(train, start, imp(sparsity), PHASES, rewind_to=start)

    keys, sparsities = (0, 7), (0.8, 0.6)
    together = jax.jit(jax.vmap(study))(jnp.array(keys), jnp.array(sparsities))
    for i in range(2):
        alone = jax.jit(study)(keys[i], sparsities[i])
        mine = jax.tree.map(lambda x, i=i: x[i], together)
        assert_close(mine[0], alone[0])
        jax.tree.map(np.testing.assert_array_equal, mine[1], alone[1])
        np.testing.assert_array_equal(mine[2][1].number, alone[2][1].number)


def test_train_is_traced_as_often_for_ten_phases_as_for_two():
    traced = []

    def counted(phase):
        traced.append(1)
        return phase.params, None

    counts = []
    for phases in (2, 10):
        traced.clear()
        jp.tickets.iterative(counted, initial(), imp(phases=phases), phases)
        counts.append(len(traced))
    assert counts[0] == counts[1] <= 2


def test_a_phase_at_a_time_is_the_whole(dense, studies):
    """`tickets.next_phase` with a traced index: what a study that is saved between phases runs."""
    early, params = dense
    move, trained = jax.jit(partial(jp.tickets.next_phase, imp())), jax.jit(lambda p: train(p)[0])
    state = imp().init(params)
    for k in range(PHASES):
        phase = move(state, params, jnp.int32(k), early)
        params, state = trained(phase), phase.state
    assert move._cache_size() == 1
    whole, masks, _ = studies[1]
    assert_close(params, whole)
    jax.tree.map(np.testing.assert_array_equal, state.masks, masks)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_params_keep_their_dtype(dtype):
    start = jax.tree.map(lambda x: x.astype(dtype), initial())
    keep = lambda phase: (phase.params, None)
    params, masks, _ = jp.tickets.iterative(keep, start, imp(), PHASES, start)
    assert params["a"]["kernel"].dtype == dtype and masks["a"]["kernel"].dtype == bool


# --- tickets, from the first weights to the last phase ------------------------------------------


def classifier():
    """(init, fit, accuracy) of a small network on data of four classes."""
    model = nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(4)])
    x = jax.random.normal(jax.random.key(1), (256, 8))
    y = jnp.argmax(x @ jax.random.normal(jax.random.key(2), (8, 4)), -1)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels

    def fit(tx, params):
        def step(carry, _):
            grads = jax.grad(lambda p: cross_entropy(model.apply(p, x), y).mean())(carry[0])
            updates, opt_state = tx.update(grads, carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), opt_state), None

        return jax.lax.scan(step, (params, tx.init(params)), None, 100)[0][0]

    accuracy = lambda params: jnp.mean(jnp.argmax(model.apply(params, x), -1) == y)
    return lambda key: model.init(key, x), fit, accuracy


@pytest.mark.full
def test_tickets_win_over_random_masks_in_one_vmapped_program():
    init, fit, accuracy = classifier()

    def tickets(key):
        initial = init(key)

        def train(phase):
            masks = jp.tickets.shuffle(key, phase.masks)
            lanes = (phase.params, phase.masks), (jp.apply_masks(initial, masks), masks)
            ends = [fit(jp.sparsify(optax.adam(1e-2), jp.fixed(m)), p) for p, m in lanes]
            return ends[0], jnp.stack([accuracy(end) for end in ends])

        return jp.tickets.iterative(
            train, fit(optax.adam(1e-2), initial), imp(0.9, 5), 5, rewind_to=initial
        )

    params, masks, accuracies = jax.jit(jax.vmap(tickets))(jax.random.split(jax.random.key(0), 4))
    np.testing.assert_allclose(jax.vmap(jp.sparsity)(masks), 0.9, atol=2e-3)
    kernel, mask = (tree["params"]["layers_0"]["kernel"] for tree in (params, masks))
    assert not kernel[~mask].any()
    ticket, control = accuracies.mean(0).T
    assert ticket[-1] > control[-1] + 0.1
    assert ticket[0] > 0.97


# --- bad input -----------------------------------------------------------------------------------


def test_a_target_below_the_current_sparsity():
    for f in (jp.tickets.rate, jp.tickets.sparsities, jp.tickets.schedule):
        with pytest.raises(ValueError, match=r"the sparsity 0.5 is below 0.8, where the first"):
            f(0.5, 3, start=0.8)
    with pytest.raises(ValueError, match=r"the sparsity 0\.5 is below 0\.8"):
        jp.tickets.rate(0.5, 3, start=jnp.float32(0.8))


@pytest.mark.parametrize("rate", [0, 1, -0.1, 20])
def test_a_rate_outside_0_1(rate):
    with pytest.raises(ValueError, match=r"the remaining weights that it prunes, in \(0, 1\); got"):
        jp.tickets.sparsity_after(rate, 3)
    with pytest.raises(ValueError, match=r"For 20 % write 0.2"):
        jp.tickets.sparsity_after(20, 3)


def test_sparsities_and_phases_that_make_no_sense():
    with pytest.raises(ValueError, match=r"in \[0, 1\); got 1"):
        jp.tickets.rate(1.0, 3)
    with pytest.raises(ValueError, match="at least one phase; got 0"):
        jp.tickets.schedule(0.9, 0)
    for bad in (2.0, True, None):
        with pytest.raises(TypeError, match="phases is how many there are, an int"):
            jp.tickets.rate(0.9, bad)
    with pytest.raises(ValueError, match="iterative: needs at least one phase"):
        jp.tickets.iterative(train, initial(), imp(), 0)


def test_no_transform():
    with pytest.raises(TypeError, match=r"needs a mask transform, .*; got float"):
        jp.tickets.iterative(train, initial(), 0.9, 3)


def test_train_must_return_a_pair_like_the_params():
    with pytest.raises(TypeError, match=r"train\(phase\) returns \(params, out\).*; got dict"):
        jp.tickets.iterative(lambda phase: phase.params, initial(), imp(), 2)
    with pytest.raises(
        ValueError, match=r"what train returns must be like the params: missing: 'b/bias'"
    ):
        jp.tickets.iterative(
            lambda p: (p.params | {"b": {"kernel": p.params["b"]["kernel"]}}, None),
            initial(), imp(), 2,
        )  # fmt: skip


def test_rewinding_to_other_params():
    other = initial() | {"norm": {"scale": jnp.zeros(5)}}
    with pytest.raises(ValueError, match="rewind_to must be like the params: 'norm"):
        jp.tickets.iterative(train, initial(), imp(), 2, rewind_to=other)


@pytest.mark.full
def test_what_is_rewound_to_outlives_a_training_that_donates():
    transform, early = jp.prune(jp.magnitude, jp.uniform, jp.tickets.schedule(0.9, 2)), initial()
    train = jax.jit(lambda phase: jax.tree.map(lambda w: w + 1, phase.params), donate_argnums=0)
    params, state = initial(), transform.init(initial())
    for number in range(2):
        phase = jp.tickets.next_phase(transform, state, params, number, early)
        params, state = train(phase._replace(before=None)), transform.init(initial())
    jax.tree.map(np.testing.assert_array_equal, early, initial())
