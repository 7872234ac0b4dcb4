"""When mask transforms act, and one after the other."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxprune as jp
from jaxprune.base import MaskState, MaskTransform

PARAMS = {"kernel": jnp.arange(1.0, 21).reshape(4, 5), "bias": jnp.ones(5)}


class CountingState(NamedTuple):
    """Masks, how many updates there were, and the step of the last."""

    masks: Any
    calls: jax.Array
    last: jax.Array


def counting():
    """Keeps everything, and counts its updates."""

    def init(params):
        masks = jax.tree.map(lambda w: jnp.ones(w.shape, bool), jp.kernels(params))
        return CountingState(masks, jnp.int32(0), jnp.int32(-1))

    def update(state, params, *, step, **context):
        return CountingState(state.masks, state.calls + 1, jnp.asarray(step, jnp.int32))

    return MaskTransform(init, update)


def one_shot(sparsity=0.5, **kwargs):
    return jp.prune(jp.magnitude, jp.uniform, sparsity, **kwargs)


def gradual(schedule):
    return jp.prune(jp.magnitude, jp.uniform, schedule)


def ask(transform, state, step, params=PARAMS):
    """One update; jitted, which compiles once and not operation by operation."""
    update = jax.jit(
        lambda state, params, step: transform.update(
            state, params, step=step, grads=None, opt_state=None
        )
    )
    return update(state, params, jnp.asarray(step, jnp.int32))


def over_steps(transform, steps, read, params=PARAMS):
    """What `read(state)` gives after each of the updates at steps 0, 1, ...: stacked."""

    def body(state, step):
        state = ask(transform, state, step, params)
        return state, read(state)

    return jax.jit(lambda: lax.scan(body, transform.init(params), jnp.arange(steps))[1])()


def zeros(masks):
    return sum(int((~mask).sum()) for mask in jax.tree.leaves(masks))


# --- every ---------------------------------------------------------------------------------------

CADENCES = [
    # n, start, stop
    (1, 0, None),
    (3, 0, None),
    (3, 4, None),
    (1, 5, 9),
    (5, 0, 20),
    (5, 0, 18),  # n does not divide
    (5, 2, 18),
    (7, 3, 4),
    (4, 6, 6),  # start == stop
    (100, 0, 11),  # n beyond stop
    (100, 30, None),  # never
    (2, 0, 0),
]


def is_due(step, n, start, stop):
    """Whether `every(n, ..., start, stop)` acts, in so many words."""
    in_time = step >= start and (stop is None or step <= stop)
    return in_time and ((step - start) % n == 0 or step == stop)


@pytest.mark.parametrize(("n", "start", "stop"), CADENCES)
def test_every_acts_when_due(n, start, stop):
    transform = jp.every(n, counting(), start=start, stop=stop)
    calls, last = over_steps(transform, 25, lambda state: (state.calls, state.last))
    due = [step for step in range(25) if is_due(step, n, start, stop)]
    assert calls.tolist() == [sum(d <= step for d in due) for step in range(25)]
    for step in due:
        assert int(last[step]) == step


@pytest.mark.parametrize(("n", "start", "stop"), CADENCES)
def test_every_says_when_it_is_due(n, start, stop):
    inside = jp.chain(jp.itop(jp.every(n, counting(), start=start, stop=stop)))
    for transform in (jp.every(n, counting(), start=start, stop=stop), inside):
        due = jax.vmap(lambda step, t=transform: t.due(t.init(PARAMS), step=step))
        expected = [is_due(step, n, start, stop) for step in range(25)]
        assert due(jnp.arange(25)).tolist() == expected


def test_due_of_what_combines():
    """Cadences within cadences; the first time only; one of several; never; nobody has said."""
    told = lambda transform, step: bool(transform.due(transform.init(PARAMS), step=jnp.int32(step)))
    nested = jp.every(2, jp.every(3, counting(), stop=6))
    assert [step for step in range(10) if told(nested, step)] == [0, 6]
    ending = jp.every(4, jp.every(3, counting()), stop=5)  # the last update reaches what is inside
    assert [step for step in range(10) if told(ending, step)] == [0, 5]

    once = jp.every(2, one_shot())
    state, due = once.init(PARAMS), []
    for step in range(5):
        due.append(bool(once.due(state, step=jnp.int32(step))))
        state = ask(once, state, step)
    assert due == [True, False, False, False, False]

    masks = one_shot().init(PARAMS).masks
    several = jp.chain(jp.fixed(masks), jp.every(2, counting()), jp.every(3, counting()))
    assert [step for step in range(8) if told(several, step)] == [0, 2, 3, 4, 6]
    never = jp.every(1, jp.static(jax.random.key(0), 0.5))
    assert not any(told(never, step) for step in range(3))
    assert jp.chain(jp.fixed(masks), counting()).due is None


@pytest.mark.parametrize(("n", "start", "stop"), CADENCES)
def test_every_says_which_update_is_the_last(n, start, stop):
    def update(state, params, *, at_end, **_):
        return MaskState({"at_end": state.masks["at_end"] | at_end})

    start_state = MaskState({"at_end": jnp.zeros((), bool)})
    transform = jp.every(n, MaskTransform(lambda params: start_state, update), start, stop)
    seen = over_steps(transform, 25, lambda state: state.masks["at_end"])
    assert seen.tolist() == [stop is not None and step >= stop for step in range(25)]


@pytest.mark.parametrize(
    ("n", "start", "stop", "begin", "length"),
    [
        (5, 0, 20, 0, 20),
        (7, 0, 20, 0, 20),  # n does not divide
        (5, 0, 10, 0, 1000),  # stops before the end of the schedule
        (100, 0, 12, 3, 9),
        (4, 6, 6, 0, 20),  # start == stop
    ],
)
def test_every_ends_exactly_at_the_end_of_the_schedule(n, start, stop, begin, length):
    schedule = optax.polynomial_schedule(0.0, 0.85, 3, length, transition_begin=begin)
    transform = jp.every(n, gradual(schedule), start=start, stop=stop)
    pruned = over_steps(transform, 25, lambda state: (~state.masks["kernel"]).sum()).tolist()
    assert pruned[stop:] == [17] * (25 - stop)  # 0.85 of 20, and then it rests
    expected, now = [], 0
    for step in range(stop):
        if is_due(step, n, start, stop):
            now = round(float(schedule(step)) * 20)
        expected.append(now)
    assert pruned[:stop] == expected


def test_every_without_a_stop_follows_the_schedule():
    schedule = optax.linear_schedule(0.0, 0.8, 8)
    pruned = over_steps(
        jp.every(3, gradual(schedule)), 12, lambda state: (~state.masks["kernel"]).sum()
    )
    assert pruned.tolist() == [0, 0, 0, 6, 6, 6, 12, 12, 12, 16, 16, 16]


@pytest.mark.parametrize("inner_stop", [None, 20, 30])
@pytest.mark.parametrize("length", [20, 40])
def test_every_in_every_ends_at_the_end_too(inner_stop, length):
    inner = jp.every(8, gradual(optax.linear_schedule(0.0, 0.85, length)), stop=inner_stop)
    transform = jp.every(1, inner, stop=20)
    pruned = over_steps(transform, 23, lambda state: (~state.masks["kernel"]).sum())
    assert pruned[20:].tolist() == [17] * 3  # 0.85 of 20


def test_every_in_every_rests_after_its_own_stop():
    transform = jp.every(1, jp.every(2, counting(), stop=4), stop=9)
    calls = over_steps(transform, 12, lambda state: state.calls)
    assert calls.tolist() == [1, 1, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3]


def test_every_takes_integers_of_numpy():
    transform = jp.every(np.int64(2), counting(), start=np.int32(1), stop=np.int64(3))
    assert over_steps(transform, 6, lambda state: state.calls).tolist() == [0, 1, 1, 2, 2, 2]


def test_every_hands_on_the_context():
    seen = {}

    def update(state, params, **context):
        seen.update(context)
        return state

    transform = jp.every(2, MaskTransform(counting().init, update))
    transform.update(transform.init(PARAMS), PARAMS, step=0, grads=PARAMS, opt_state=(), value=3.0)
    assert seen["value"] == 3.0 and seen["opt_state"] == ()
    assert seen["grads"] is PARAMS and int(seen["step"]) == 0


def test_every_under_vmap_equals_a_loop_with_lanes_at_other_steps():
    schedule = optax.linear_schedule(0.0, 0.9, 6)
    transform = jp.every(3, gradual(schedule), start=1, stop=6)
    steps = jnp.arange(9)
    params = jax.vmap(lambda key: jax.tree.map(lambda w: jax.random.normal(key, w.shape), PARAMS))(
        jax.random.split(jax.random.key(0), 9)
    )
    update = lambda params, step: ask(transform, transform.init(params), step, params).masks
    lanes = jax.jit(jax.vmap(update))(params, steps)
    loop = jax.jit(update)
    for i in range(9):
        own = loop(jax.tree.map(lambda x, i=i: x[i], params), steps[i])
        np.testing.assert_array_equal(lanes["kernel"][i], own["kernel"])
    pruned = (~lanes["kernel"]).sum((1, 2)).tolist()
    assert pruned == [0, 3, 0, 0, 12, 0, 18, 0, 0]  # 0.15, 0.6 and, at the end, 0.9 of 20


def compiled(f, *args):
    return jax.jit(f).lower(*args).compile().as_text()


@pytest.mark.parametrize("nested", [False, True])
def test_every_under_vmap_stays_a_branch(nested):
    own = gradual(optax.linear_schedule(0.0, 0.9, 100))
    transform = jp.every(10, own)

    def step(state, step):
        return ask(transform, state, step)

    def plain(state, step):
        return lax.cond(step % 10 == 0, lambda: ask(own, state, step), lambda: state)

    def text(f):
        steps, lanes = jnp.arange(6), jax.vmap(f)
        if nested:
            steps, lanes = steps.reshape(2, 3), jax.vmap(lanes)
        shape = steps.shape
        states = jax.tree.map(
            lambda x: jnp.broadcast_to(x, shape + x.shape), transform.init(PARAMS)
        )
        return compiled(lanes, states, steps)

    assert " conditional(" in text(step)
    # which a cond by itself does not: all lanes would be ranked at every step
    assert " conditional(" not in text(plain)


def test_every_under_vmap_computes_only_when_a_lane_is_due():
    ran = []

    def update(state, params, *, step, **context):
        jax.debug.callback(lambda s: ran.append(int(s)), step, ordered=False)
        return state

    transform = jp.every(3, MaskTransform(counting().init, update))
    lanes = jax.jit(jax.vmap(lambda step: ask(transform, transform.init(PARAMS), step).calls))
    lanes(jnp.array([1, 2, 4])).block_until_ready()
    jax.effects_barrier()
    assert ran == []
    lanes(jnp.array([1, 3, 4])).block_until_ready()
    jax.effects_barrier()
    assert sorted(ran) == [1, 3, 4]  # one due lane is enough for all


def test_every_keeps_the_structure_of_the_state():
    transform = jp.every(2, one_shot())
    before = transform.init(PARAMS)
    after = ask(transform, before, 0)
    kinds = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert kinds(before) == kinds(after)


@pytest.mark.parametrize(
    ("n", "kwargs", "kind", "fragment"),
    [
        (0, {}, ValueError, "every(n, ...): n must be at least 1; got 0."),
        (-3, {}, ValueError, "n must be at least 1; got -3."),
        (2.5, {}, TypeError, "n is a number of steps, an int; got 2.5."),
        (True, {}, TypeError, "n is a number of steps, an int; got True."),
        ("10", {}, TypeError, "n is a number of steps, an int; got '10'."),
        (None, {}, TypeError, "got None."),
        (1, {"start": -1}, ValueError, "every: start must be at least 0; got -1."),
        (1, {"start": 1.5}, TypeError, "every: start is a number of steps, an int; got 1.5."),
        (1, {"stop": -1}, ValueError, "every: stop must be at least 0; got -1."),
        (1, {"stop": "end"}, TypeError, "every: stop is a number of steps"),
        (1, {"start": 5, "stop": 4}, ValueError, "needs start <= stop; got start=5, stop=4."),
    ],
)
def test_every_of_no_cadence(n, kwargs, kind, fragment):
    with pytest.raises(kind) as error:
        jp.every(n, counting(), **kwargs)
    assert fragment in str(error.value)


# --- once ----------------------------------------------------------------------------------------


def test_once_acts_once():
    calls = over_steps(jp.once(counting()), 5, lambda state: state.rest.calls)
    assert calls.tolist() == [1, 1, 1, 1, 1]


def test_once_in_every_acts_at_the_start():
    transform = jp.every(3, jp.once(counting()), start=4)
    last = over_steps(transform, 12, lambda state: state.rest.last)
    assert last.tolist() == [-1] * 4 + [4] * 8


def test_once_waits_for_the_cadence_inside_it():
    calls = over_steps(jp.once(jp.every(3, counting(), start=4)), 9, lambda s: s.rest.calls)
    np.testing.assert_array_equal(calls, [0, 0, 0, 0, 1, 1, 1, 1, 1])


def test_once_freezes_the_masks():
    transform = one_shot()
    first = ask(transform, transform.init(PARAMS), 0)
    reversed_params = {"kernel": PARAMS["kernel"][::-1], "bias": PARAMS["bias"]}
    second = ask(transform, first, 1, reversed_params)
    assert first.masks["kernel"].tolist() == [[False] * 5] * 2 + [[True] * 5] * 2
    np.testing.assert_array_equal(second.masks["kernel"], first.masks["kernel"])


def test_once_of_once():
    calls = over_steps(jp.once(jp.once(counting())), 3, lambda state: state.rest.rest.calls)
    assert calls.tolist() == [1, 1, 1]


def test_once_under_vmap_is_once_a_lane():
    transform = jp.once(counting())

    def lane(start):
        outer = jp.every(1, transform)
        state = outer.init(PARAMS)
        for step in range(3):
            new = ask(outer, state, step)
            state = jax.tree.map(lambda a, b, step=step: jnp.where(step >= start, a, b), new, state)
        return state.rest.last

    assert jax.jit(jax.vmap(lane))(jnp.arange(4)).tolist() == [0, 1, 2, -1]


# --- fixed ---------------------------------------------------------------------------------------

MASKS = {"kernel": PARAMS["kernel"] > 7, "bias": None}


def test_fixed_keeps_its_masks():
    transform = jp.fixed(MASKS)
    state = transform.init(PARAMS)
    assert isinstance(state, MaskState) and state.masks["bias"] is None
    assert transform.update(state, PARAMS, step=3, grads=None, opt_state=None) is state
    np.testing.assert_array_equal(state.masks["kernel"], MASKS["kernel"])


def test_fixed_takes_masks_of_numpy_and_holes_of_optax():
    state = jp.fixed({"kernel": np.asarray(MASKS["kernel"]), "bias": optax.MaskedNode()}).init(
        PARAMS
    )
    assert isinstance(state.masks["kernel"], jax.Array) and state.masks["bias"] is None


def test_fixed_takes_what_select_and_get_masks_give():
    selected = jp.select(jp.magnitude(jp.kernels(PARAMS)), jp.uniform, 0.5)
    tx = jp.sparsify(optax.adam(0.1), jp.fixed(selected))
    again = jp.fixed(jp.get_masks(tx.init(PARAMS))).init(PARAMS)
    np.testing.assert_array_equal(again.masks["kernel"], selected["kernel"])


def test_fixed_of_a_function_asks_the_first_params():
    half = lambda params: jp.select(jp.magnitude(jp.kernels(params)), jp.uniform, 0.5)
    tx = jp.sparsify(optax.adam(0.1), jp.fixed(half))
    stack = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), PARAMS)
    masks = jp.get_masks(jax.jit(jax.vmap(tx.init))(stack))
    np.testing.assert_array_equal(masks["kernel"][0], half(PARAMS)["kernel"])
    np.testing.assert_array_equal(masks["kernel"][1], half(PARAMS)["kernel"][::-1])
    with pytest.raises(TypeError, match="masks are bool arrays, True = kept; got float32"):
        jp.fixed(jp.kernels).init(PARAMS)


@pytest.mark.parametrize(
    ("masks", "fragments"),
    [
        ({"kernel": MASKS["kernel"]}, ["missing: 'bias'", "None (not nothing)"]),
        (
            {"weight": MASKS["kernel"], "bias": None},
            ["missing: 'kernel'", "not in the params: 'weight'"],
        ),
        (
            {"kernel": MASKS["kernel"][:3], "bias": None},
            ["'kernel' has shape (3, 5), wanted (4, 5)"],
        ),
        (
            {"kernel": jnp.ones((8, 4, 5), bool), "bias": None},
            ["'kernel' has shape (8, 4, 5)", "leading axis of seeds, vmap over both"],
        ),
    ],
    ids=["short", "foreign", "wrong shape", "seeds"],
)
def test_fixed_masks_that_do_not_fit_name_the_leaf(masks, fragments):
    with pytest.raises(ValueError) as error:
        jp.fixed(masks).init(PARAMS)
    for fragment in fragments:
        assert fragment in str(error.value)


@pytest.mark.parametrize(
    ("mask", "kind"),
    [
        (jnp.ones((4, 5)), "float32"),
        (np.ones((4, 5), np.int64), "int64"),
        (True, "bool"),
        (1.0, "float"),
    ],
)
def test_fixed_masks_must_be_arrays_of_bool(mask, kind):
    with pytest.raises(TypeError, match="masks are bool arrays, True = kept") as error:
        jp.fixed({"kernel": mask, "bias": None})
    assert f"got {kind}." in str(error.value)
    assert "jax.tree.map(lambda g: g > 0, gates)" in str(error.value)


# --- chain ---------------------------------------------------------------------------------------


def test_chain_of_fixed_and_prune_prunes_among_what_is_left():
    # kept by fixed: 8..20; the lower half of all, 1..10, goes too
    transform = jp.chain(jp.fixed(MASKS), one_shot())
    state = transform.init(PARAMS)
    np.testing.assert_array_equal(state.masks["kernel"], MASKS["kernel"])
    for step in range(2):
        state = ask(transform, state, step)
        np.testing.assert_array_equal(state.masks["kernel"], PARAMS["kernel"] > 10)
    assert state.masks["bias"] is None


def test_chain_counts_what_the_first_has_pruned_towards_the_sparsity_of_the_second():
    # fixed prunes the largest ten; the sparsity 0.5 is already there
    transform = jp.chain(jp.fixed({"kernel": PARAMS["kernel"] <= 10, "bias": None}), one_shot())
    state = ask(transform, transform.init(PARAMS), 0)
    np.testing.assert_array_equal(state.masks["kernel"], PARAMS["kernel"] <= 10)


def test_chain_of_prune_and_prune_in_turn():
    transform = jp.chain(jp.every(4, one_shot(0.5)), jp.every(1, one_shot(0.8), start=2))
    pruned = over_steps(transform, 4, lambda state: (~state.masks["kernel"]).sum())
    assert pruned.tolist() == [10, 10, 16, 16]


def test_chain_of_transforms_with_other_leaves():
    # each prunes its own leaves, and only these
    params = {"body": PARAMS["kernel"], "head": PARAMS["kernel"]}
    transform = jp.chain(
        one_shot(0.5, prunable=jp.matching("body")), one_shot(0.9, prunable=jp.matching("head"))
    )
    state = transform.init(params)
    assert state.masks["body"].all() and state.masks["head"].all()
    state = ask(transform, state, 0, params)
    assert zeros(state.masks["body"]) == 10 and zeros(state.masks["head"]) == 18


def test_chain_of_fixed_and_prune_with_other_leaves():
    params = {"body": PARAMS["kernel"], "head": PARAMS["kernel"]}
    masks = {"body": PARAMS["kernel"] > 4, "head": None}
    transform = jp.chain(jp.fixed(masks), one_shot(0.9, prunable=jp.matching("head")))
    state = ask(transform, transform.init(params), 0, params)
    assert zeros(state.masks["body"]) == 4 and zeros(state.masks["head"]) == 18


def test_chain_starts_with_what_all_of_them_keep():
    first, second = PARAMS["kernel"] > 3, PARAMS["kernel"] < 18
    transform = jp.chain(
        jp.fixed({"kernel": first, "bias": None}), jp.fixed({"kernel": second, "bias": None})
    )
    np.testing.assert_array_equal(transform.init(PARAMS).masks["kernel"], first & second)


def test_chain_keeps_the_memory_of_each():
    transform = jp.chain(jp.every(2, counting()), jp.every(3, counting()))
    calls = over_steps(transform, 7, lambda state: [rest.calls for rest in state.rests])
    assert [c.tolist() for c in calls] == [[1, 1, 2, 2, 3, 3, 4], [1, 1, 1, 2, 2, 2, 3]]


def test_chain_of_one_is_that_one():
    state = ask(jp.chain(one_shot()), jp.chain(one_shot()).init(PARAMS), 0)
    np.testing.assert_array_equal(state.masks["kernel"], PARAMS["kernel"] > 10)


def test_chain_through_an_optimizer():
    transform = jp.chain(jp.fixed(MASKS), jp.every(2, one_shot(), start=1))
    tx = jp.sparsify(optax.adam(0.1), transform)
    params, state, update = PARAMS, tx.init(PARAMS), jax.jit(tx.update)
    for expected in (7, 10, 10):
        updates, state = update(params, state, params)
        params = optax.apply_updates(params, updates)
        assert int((params["kernel"] == 0).sum()) == expected
        assert zeros(jp.get_masks(state)) == expected


def test_chain_of_none():
    with pytest.raises(ValueError, match="chain needs at least one mask transform"):
        jp.chain()


# --- what is no transform ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("combine", "name"),
    [
        (lambda t: jp.every(10, t), "every"),
        (jp.once, "once"),
        (jp.chain, "chain"),
        (lambda t: jp.chain(one_shot(), t), "chain"),
    ],
)
@pytest.mark.parametrize(
    ("thing", "kind"),
    [
        (jp.prune, "prune"),
        (None, "NoneType"),
        (10, "int"),
        (optax.adam(0.1), "GradientTransformationExtraArgs"),
        (MASKS, "dict"),
        ([one_shot()], "list"),
    ],
    ids=["prune", "None", "10", "adam", "masks", "list"],
)
def test_no_mask_transform(combine, name, thing, kind):
    with pytest.raises(TypeError, match=f"{name} needs a mask transform") as error:
        combine(thing)
    assert f"got {kind}." in str(error.value)


def test_every_with_the_arguments_swapped():
    with pytest.raises(TypeError, match="every needs a mask transform"):
        jp.every(one_shot(), 10)


@pytest.mark.full
def test_fixed_masks_hold_beside_what_only_prunes():
    """What grows weights may leave them, as `chain` says: half are given, 16 of 80 are left."""
    params = {"kernel": jax.random.normal(jax.random.key(0), (8, 10))}
    given = {"kernel": jnp.arange(80).reshape(8, 10) < 40}
    pruning = jp.prune(jp.magnitude, jp.uniform, lambda step: jnp.minimum(step, 4) * 0.2)
    tx = jp.sparsify(optax.sgd(0.1), jp.chain(jp.fixed(given), jp.every(1, pruning)))
    state = tx.init(params)
    for _ in range(5):
        updates, state = tx.update(params, state, params)
        params = optax.apply_updates(params, updates)
    masks = jp.get_masks(state)["kernel"]
    assert not (masks & ~given["kernel"]).any() and masks.sum() == 16
