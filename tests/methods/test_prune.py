"""Pruning by score: the cubic of the paper, one shot, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from jaxprune.base import MaskState

PARAMS = {"kernel": jnp.arange(1.0, 21).reshape(4, 5), "bias": jnp.ones(5)}


BIG = {"kernel": jnp.ones((64, 64))}


def ask(transform, state, step=0, params=PARAMS, grads=None, **context):
    """One update; jitted, which compiles once and not operation by operation."""
    context = {"opt_state": None, **context}
    update = jax.jit(
        lambda state, params, step, grads: transform.update(
            state, params, step=step, grads=grads, **context
        )
    )
    return update(state, params, jnp.asarray(step, jnp.int32), grads)


def first_masks(transform, params=PARAMS, **context):
    return ask(transform, transform.init(params), 0, params, **context).masks


def cubic(final=0.9, steps=1000, begin=0):
    return optax.polynomial_schedule(
        0.0, final, power=3, transition_steps=steps, transition_begin=begin
    )


# --- the schedule of the paper -------------------------------------------------------------------

CARD = {0: 0.0, 100: 0.2439, 250: 0.5203, 500: 0.7875, 750: 0.8859, 1000: 0.9, 5000: 0.9}


def test_the_cubic_of_optax_is_that_of_zhu_and_gupta():
    for t, value in CARD.items():
        assert float(cubic()(t)) == pytest.approx(value, abs=5e-5)
        by_hand = 0.9 + (0 - 0.9) * (1 - min(t, 1000) / 1000) ** 3
        assert float(cubic()(t)) == pytest.approx(by_hand, abs=1e-6)


def test_the_cubic_begins_where_it_is_told():
    shifted = cubic(begin=50)
    assert float(shifted(0)) == float(shifted(50)) == 0
    assert float(shifted(150)) == pytest.approx(0.2439, abs=5e-5)
    assert float(shifted(1050)) == pytest.approx(0.9)


def test_the_cubic_in_nine_prunes():
    # 100 epochs with a prune every ten: k = 1..9 of 9
    values = [float(cubic(steps=9)(k)) for k in range(1, 10)]
    expected = [0.2679, 0.4765, 0.6333, 0.7457, 0.8210, 0.8667, 0.8901, 0.8988, 0.9000]
    np.testing.assert_allclose(values, expected, atol=6e-5)


def test_gradual_pruning_prunes_what_the_schedule_says():
    params = {"kernel": jax.random.normal(jax.random.key(0), (100, 100))}
    transform = jp.prune(jp.magnitude, jp.uniform, cubic())
    state = transform.init(params)
    assert isinstance(state, MaskState) and state.masks["kernel"].all()
    update = jax.jit(lambda state, step: ask(transform, state, step, params))
    for step, sparsity in CARD.items():
        state = update(state, step)
        mask = np.asarray(state.masks["kernel"])
        pruned = round(sparsity * 10_000)
        assert (~mask).sum() == pruned
        order = np.argsort(np.abs(np.asarray(params["kernel"])).ravel())
        assert not mask.ravel()[order[:pruned]].any()


def test_a_schedule_sees_the_step_as_int32():
    steps = []

    def schedule(step):
        steps.append((step.dtype, jnp.shape(step)))
        return 0.5 + 0.0 * step

    transform = jp.prune(jp.magnitude, jp.uniform, schedule)
    # it was checked, in 64 bits too, where no product of steps overflows
    assert set(steps) == {(jnp.dtype("int32"), ()), (jnp.dtype("int64"), ())}
    steps.clear()
    jax.eval_shape(lambda: ask(transform, transform.init(PARAMS), 7))
    assert set(steps) == {(jnp.dtype("int32"), ())}


# --- what is pruned stays pruned -----------------------------------------------------------------


def test_a_falling_schedule_revives_nothing():
    transform = jp.prune(jp.magnitude, jp.uniform, lambda step: jnp.where(step < 1, 0.8, 0.2))
    state = ask(transform, transform.init(PARAMS), 0)
    again = ask(transform, state, 1)
    assert int(state.masks["kernel"].sum()) == 4
    np.testing.assert_array_equal(again.masks["kernel"], state.masks["kernel"])


def test_weights_that_were_pruned_stay_so_even_if_they_grow():
    transform = jp.prune(jp.magnitude, jp.uniform, lambda step: 0.5 + 0.1 * jnp.minimum(step, 1))
    state = ask(transform, transform.init(PARAMS), 0)
    turned = {"kernel": 21 - PARAMS["kernel"], "bias": PARAMS["bias"]}  # 20, 19, ..., 1
    mask = ask(transform, state, 1, turned).masks["kernel"].ravel()
    # of the upper ten the two that are now smallest go: the pruned count towards 0.6
    assert np.flatnonzero(mask).tolist() == list(range(10, 18))


def test_masks_only_shrink_over_a_run():
    transform = jp.prune(jp.random(jax.random.key(0)), jp.erk, cubic(steps=8))

    def body(state, step):
        new = ask(transform, state, step)
        return new, (state.masks["kernel"], new.masks["kernel"])

    _, (before, after) = jax.jit(lambda: lax.scan(body, transform.init(PARAMS), jnp.arange(10)))()
    assert (before | ~after).all()
    assert int(after[-1].sum()) == 2


def test_a_negative_score_is_above_a_pruned_weight():
    transform = jp.prune(
        lambda params, **_: jax.tree.map(jnp.negative, params), jp.uniform, cubic(steps=2)
    )
    state = transform.init(PARAMS)
    for step in range(3):
        state = ask(transform, state, step)
    assert np.flatnonzero(state.masks["kernel"]).tolist() == [0, 1]  # the scores -1 and -2


# --- one shot ------------------------------------------------------------------------------------


def test_a_number_prunes_at_once_and_then_never():
    transform = jp.prune(jp.magnitude, jp.uniform, 0.5)
    state = transform.init(PARAMS)
    assert state.masks["kernel"].all() and state.masks["bias"] is None
    state = ask(transform, state, 3)
    np.testing.assert_array_equal(state.masks["kernel"], PARAMS["kernel"] > 10)
    turned = {"kernel": 21 - PARAMS["kernel"], "bias": PARAMS["bias"]}
    np.testing.assert_array_equal(
        ask(transform, state, 4, turned).masks["kernel"], state.masks["kernel"]
    )


@pytest.mark.full
def test_one_shot_equals_select():
    keys = jax.random.split(jax.random.key(0), 2)
    params = {
        "a": jax.random.normal(keys[0], (6, 7)),
        "b": jax.random.normal(keys[1], (3, 3, 4, 5)),
    }
    for allocation in (jp.erk, jp.global_threshold):
        masks = first_masks(jp.prune(jp.magnitude, allocation, 0.7), params)
        expected = jp.select(jp.magnitude(jp.kernels(params)), allocation, 0.7)
        jax.tree.map(np.testing.assert_array_equal, masks, expected)


@pytest.mark.parametrize("pattern", [jp.nm(1, 2), jp.block(2, 5), jp.channel(0)])
def test_one_shot_in_a_pattern(pattern):
    masks = first_masks(jp.prune(jp.magnitude, jp.uniform, 0.5, pattern))
    select = jax.jit(lambda p: jp.select(jp.magnitude(jp.kernels(p)), jp.uniform, 0.5, pattern))
    expected = select(PARAMS)
    np.testing.assert_array_equal(masks["kernel"], expected["kernel"])
    assert int(masks["kernel"].sum()) == 10


def test_over_sparsities_by_vmap():
    masks = jax.jit(jax.vmap(lambda s: first_masks(jp.prune(jp.magnitude, jp.erk, s))["kernel"]))(
        jnp.array([0.0, 0.25, 0.5, 0.9])
    )
    assert (~masks).sum((1, 2)).tolist() == [0, 5, 10, 18]


def test_two_seeds_two_masks():
    keys = jax.random.split(jax.random.key(0), 3)
    draw = lambda key: first_masks(jp.prune(jp.random(key), jp.uniform, 0.5))["kernel"]
    lanes, loop = jax.jit(jax.vmap(draw))(keys), jax.jit(draw)
    assert lanes.sum((1, 2)).tolist() == [10, 10, 10]
    for i in range(3):
        np.testing.assert_array_equal(lanes[i], loop(keys[i]))
        assert (lanes[i] != lanes[i - 1]).any()


# --- schedules inside jit ------------------------------------------------------------------------


def test_a_schedule_made_inside_jit_of_a_traced_end():
    @jax.jit
    @jax.vmap
    def pruned(final):
        transform = jp.prune(jp.magnitude, jp.uniform, cubic(final, steps=2))
        state = transform.init(PARAMS)
        for step in range(3):
            state = ask(transform, state, step)
        return (~state.masks["kernel"]).sum()

    assert pruned(jnp.array([0.5, 0.9])).tolist() == [10, 18]


def test_a_schedule_made_inside_jit_is_checked_all_the_same():
    @jax.jit
    def f(x):
        jp.prune(jp.magnitude, jp.uniform, lambda step: step / 100)
        return x

    with pytest.raises(ValueError, match="the sparsity schedule ends at"):
        f(1.0)


# --- scores in a transform -----------------------------------------------------------------------


def test_scores_get_the_gradients():
    grads = {"kernel": 21 - PARAMS["kernel"], "bias": PARAMS["bias"]}
    masks = first_masks(jp.prune(jp.gradient, jp.uniform, 0.5), grads=grads)
    np.testing.assert_array_equal(masks["kernel"], PARAMS["kernel"] <= 10)
    masks = first_masks(jp.prune(jp.saliency, jp.uniform, 0.8), grads=grads)  # w (21 - w)
    assert sorted(PARAMS["kernel"][masks["kernel"]].tolist()) == [9, 10, 11, 12]


def test_scores_that_need_gradients_and_get_none():
    with pytest.raises(ValueError, match="saliency needs gradients"):
        first_masks(jp.prune(jp.saliency, jp.uniform, 0.5))


def test_scores_see_what_is_prunable_only_and_the_context():
    seen = {}

    def score(params, **context):
        seen.update(context, params=params)
        return params

    grads = jax.tree.map(jnp.ones_like, PARAMS)
    transform = jp.prune(score, jp.uniform, 0.5)
    context = {"step": jnp.int32(0), "grads": grads, "opt_state": (1,), "value": 2.0}
    transform.update(transform.init(PARAMS), PARAMS, **context)
    assert seen["params"]["bias"] is None and seen["grads"]["bias"] is None
    assert seen["params"]["kernel"].shape == (4, 5) and seen["opt_state"] == (1,)
    assert seen["value"] == 2.0 and int(seen["step"]) == 0


def test_fisher_works_with_adam():
    tx = jp.sparsify(optax.adam(0.1), jp.every(1, jp.prune(jp.fisher, jp.uniform, 0.5), start=1))
    grads = {"kernel": 1 / PARAMS["kernel"] ** 2, "bias": PARAMS["bias"]}
    params, state, update = PARAMS, tx.init(PARAMS), jax.jit(tx.update)
    for pruned in (0, 10):
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        assert int((~jp.get_masks(state)["kernel"]).sum()) == pruned
    # w^2 nu falls with w, so that the small weights stay
    np.testing.assert_array_equal(jp.get_masks(state)["kernel"], PARAMS["kernel"] <= 10)


def test_fisher_with_sgd_says_what_it_needs():
    tx = jp.sparsify(optax.sgd(0.1, momentum=0.9), jp.prune(jp.fisher, jp.uniform, 0.5))
    with pytest.raises(ValueError, match="second moment `nu` of 'kernel'") as error:
        jax.jit(tx.update)(PARAMS, tx.init(PARAMS), PARAMS)
    assert "Use adam, adamw, lamb or rmsprop" in str(error.value)


def test_lamp_in_a_transform():
    params = {"big": 100 + PARAMS["kernel"], "small": PARAMS["kernel"]}
    masks = first_masks(jp.prune(jp.lamp(), jp.global_threshold, 0.9), params)
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    assert sum(kept.values()) == 4 and min(kept.values()) >= 1


# --- what is prunable ----------------------------------------------------------------------------


def test_prunable_is_a_choice():
    transform = jp.prune(jp.magnitude, jp.uniform, 0.4, prunable=jp.matching("bias"))
    masks = first_masks(transform)
    assert (
        masks["kernel"] is None and masks["bias"].tolist() == [False, False, True, True, True][::-1]
    )


def test_prunable_may_be_all():
    masks = first_masks(jp.prune(jp.magnitude, jp.global_threshold, 0.2, prunable=lambda p: p))
    assert sum(int((~m).sum()) for m in jax.tree.leaves(masks)) == 5


@pytest.mark.parametrize(
    "params", [{"bias": jnp.ones(3), "scale": jnp.ones((2, 2))}, {"kernel": jnp.ones((0, 3))}]
)
def test_nothing_is_prunable_names_the_leaves(params):
    with pytest.raises(ValueError, match="nothing is prunable among") as error:
        jp.prune(jp.magnitude, jp.uniform, 0.5).init(params)
    for name in params:
        assert repr(name) in str(error.value)
    assert "prunable=matching(...)" in str(error.value)


def test_no_params_at_all():
    with pytest.raises(ValueError, match=r"nothing is prunable among \(none\)"):
        jp.prune(jp.magnitude, jp.uniform, 0.5).init({})


def test_other_params_than_at_the_start_are_named():
    transform = jp.prune(jp.magnitude, jp.uniform, 0.5)
    with pytest.raises(ValueError, match="'kernel' has shape"):
        ask(
            transform,
            transform.init(PARAMS),
            0,
            {"kernel": jnp.ones((5, 4)), "bias": PARAMS["bias"]},
        )


def test_the_leaf_is_named_where_a_pattern_does_not_fit():
    transform = jp.prune(jp.magnitude, jp.uniform, 0.5, jp.nm(2, 4, axis=-1))
    with pytest.raises(ValueError, match=r"'kernel': nm\(2, 4\) needs axis -1 divisible by 4"):
        first_masks(transform)


def test_nm_with_a_schedule():
    transform = jp.prune(jp.magnitude, jp.uniform, cubic(0.5), jp.nm(2, 4))
    with pytest.raises(ValueError, match=r"'kernel': nm\(2, 4\) prunes exactly 0.5 of every leaf"):
        jax.jit(lambda step: ask(transform, transform.init(PARAMS), step))(3)


# --- memory and sharding -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "allocation"), [(jp.magnitude, jp.global_threshold), (jp.saliency, jp.erk)]
)
def test_an_update_makes_no_second_copy_of_the_params(score, allocation):
    params = {"a": jnp.ones((256, 512)), "b": jnp.ones((3, 3, 64, 128))}
    transform = jp.prune(score, allocation, cubic())
    update = jax.jit(lambda state, step, p, g: ask(transform, state, step, p, grads=g))
    compiled = update.lower(transform.init(params), 3, params, params).compile()
    size = sum(x.nbytes for x in params.values())
    assert compiled.memory_analysis().temp_size_in_bytes < size / 20


def test_masks_are_born_with_the_sharding_of_their_params():
    mesh = jax.make_mesh((8,), ("d",))
    own = jax.device_put(jnp.ones((16, 8)), NamedSharding(mesh, P("d")))
    transform = jp.prune(jp.magnitude, jp.uniform, cubic())
    mask = transform.init({"kernel": own}).masks["kernel"]
    assert mask.sharding.is_equivalent_to(own.sharding, 2)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sparsity", "kind", "fragment"),
    [
        (-90, ValueError, "got -90."),
        (1.0, ValueError, "in [0, 1); got 1."),
        (-0.1, ValueError, "got -0.1."),
        (float("nan"), ValueError, "got nan."),
        (True, TypeError, "got True"),
        ("0.9", TypeError, "got '0.9'"),
        (None, TypeError, "got None"),
        (jnp.array([0.5, 0.5]), ValueError, "shape (2,)"),
    ],
)
def test_a_sparsity_that_is_none(sparsity, kind, fragment):
    with pytest.raises(kind) as error:
        jp.prune(jp.magnitude, jp.uniform, sparsity)
    assert fragment in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [
        ((jp.magnitude(BIG), jp.uniform, 0.5), "got a dict."),
        ((BIG["kernel"], jp.uniform, 0.5), "got an array of float32 of shape (64, 64)."),
        ((jp.magnitude, jp.erk(BIG, 0.5), 0.5), "got {'kernel': 0.5}."),
        ((jp.magnitude, BIG, 0.5), "got a dict."),
        ((jp.magnitude, jp.uniform, BIG), "got a dict of type dict."),
        ((jp.magnitude, jp.uniform, 0.5, BIG), "got a dict."),
        ((jp.magnitude, jp.uniform, 0.5, jp.unstructured, BIG), "got a dict."),
    ],
)
def test_what_was_given_is_told_in_a_few_words(arguments, seen):
    with pytest.raises(TypeError) as error:
        jp.prune(*arguments)
    assert seen in str(error.value) and len(str(error.value)) < 250


def test_an_integer_is_how_many_weights_are_pruned():
    params = {"kernel": jnp.arange(1.0, 101).reshape(10, 10), "bias": jnp.ones(10)}
    tx = jp.sparsify(optax.sgd(0.0), jp.prune(jp.magnitude, jp.uniform, 20))
    state = tx.update(params, tx.init(params), params)[1]
    assert int((~jp.get_masks(state)["kernel"]).sum()) == 20
    with pytest.raises(ValueError, match="how many weights of 100 are pruned"):
        jp.prune(jp.magnitude, jp.uniform, 100).init(params)


@pytest.mark.parametrize(
    ("schedule", "fragment"),
    [
        (lambda step: 0.001 * step, "the sparsity schedule ends at"),  # does not level off
        (lambda step: 0.9 - 0.001 * step, "the sparsity schedule ends at"),
        (optax.linear_schedule(0.0, 1.0, 100), "ends at 1.0"),
        (optax.linear_schedule(-0.5, 0.9, 100), "starts at -0.5"),
        (optax.constant_schedule(90.0), "starts at 90.0"),
        (lambda step: jnp.nan, "starts at nan"),
        (lambda step: jnp.array([0.5, 0.9]), "starts at [0.5 0.9]"),
    ],
    ids=["rises", "falls", "to one", "from below", "percent", "nan", "two"],
)
def test_a_schedule_that_is_none(schedule, fragment):
    with pytest.raises(ValueError) as error:
        jp.prune(jp.magnitude, jp.uniform, schedule)
    assert fragment in str(error.value)
    assert "a sparsity is a fraction in [0, 1)" in str(error.value)
    assert "jnp.minimum(step / 1000, 1.0) * 0.9" in str(error.value)


def test_the_schedule_that_the_error_suggests_is_one():
    transform = jp.prune(jp.magnitude, jp.uniform, lambda step: jnp.minimum(step / 1000, 1.0) * 0.9)
    assert int((~ask(transform, transform.init(PARAMS), 500).masks["kernel"]).sum()) == 9


@pytest.mark.parametrize("score", [None, 0.9, "magnitude", {"kernel": jnp.ones((4, 5))}])
def test_no_score(score):
    with pytest.raises(TypeError, match="prune: score is a function") as error:
        jp.prune(score, jp.uniform, 0.5)
    assert "jp.magnitude, jp.random(key) or jp.lamp()" in str(error.value)


@pytest.mark.parametrize("prunable", [None, "*/kernel", ["kernel"]])
def test_no_prunable(prunable):
    with pytest.raises(TypeError, match="prune: prunable is a function") as error:
        jp.prune(jp.magnitude, jp.uniform, 0.5, prunable=prunable)
    assert f"got {prunable!r}" in str(error.value) and "jp.matching" in str(error.value)


@pytest.mark.parametrize(
    ("score", "allocation"),
    [(jp.erk, jp.magnitude), (jp.uniform, jp.erk), (jp.magnitude, jp.saliency)],
)
def test_score_and_allocation_the_other_way_round(score, allocation):
    said = f"score.*then an allocation.*{score.__name__}, then the function {allocation.__name__}"
    with pytest.raises(TypeError, match=said):
        jp.prune(score, allocation, 0.5)


def test_a_number_is_due_once_and_a_schedule_always():
    number = jp.prune(jp.magnitude, jp.uniform, 0.5)
    state = number.init(PARAMS)
    assert number.due(state, step=0)
    assert not number.due(ask(number, state), step=1)
    assert jp.prune(jp.magnitude, jp.uniform, cubic()).due is None
