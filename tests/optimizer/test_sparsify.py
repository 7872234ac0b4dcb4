"""Masks into optax: what reaches whom, what is refused, and wrappers around and inside.

The invariant itself, over all transforms and optimizers, is in test_contract.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune.base import MaskState, MaskTransform

PARAMS = {"kernel": jnp.array([[3.0, -1.0], [2.0, -4.0]]), "bias": jnp.ones(2)}
MASKS = {"kernel": jnp.array([[True, False], [False, True]]), "bias": None}
LABELS = {"kernel": "a", "bias": "b"}


def one_shot(**kwargs):
    return jp.prune(jp.magnitude, jp.uniform, 0.5, **kwargs)


def run(tx, params=PARAMS, steps=3, grads=None, **extra):
    """Params and state after some steps with gradients of ones."""
    grads = jax.tree.map(jnp.ones_like, params) if grads is None else grads
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(steps):
        updates, state = update(grads, state, params, **extra)
        params = optax.apply_updates(params, updates)
    return params, state


def recording(seen):
    """A mask transform that keeps everything, and notes what it is asked with."""

    def init(params):
        return MaskState(jax.tree.map(lambda w: jnp.ones(w.shape, bool), jp.kernels(params)))

    def update(state, params, **context):
        seen.append({"params": params, **context})
        return state

    return MaskTransform(init, update)


def listening(seen):
    """An inner optimizer that notes what it is given, and updates by minus the gradient."""

    def update(grads, state, params=None, **extra):
        seen.append({"grads": grads, "params": params, **extra})
        return jax.tree.map(jnp.negative, grads), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


# --- numbers -------------------------------------------------------------------------------------


def test_the_update_by_hand():
    tx = jp.sparsify(optax.sgd(0.5), one_shot())
    updates, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    # kept: minus half the gradient, here the weight; pruned: minus the weight
    assert updates["kernel"].tolist() == [[-1.5, 1.0], [-2.0, 2.0]]
    assert updates["bias"].tolist() == [-0.5, -0.5]
    assert jp.get_masks(state)["kernel"].tolist() == MASKS["kernel"].tolist()
    assert int(state.step) == 1 and state.step.dtype == jnp.int32


def test_momentum_does_not_move_a_pruned_weight():
    # card 0: a weight at 0 with a buffer of 0.5, lr 0.1, mu 0.9, no gradients, three steps
    params = {"kernel": jnp.array([[0.0, 1.0]])}
    no_grads = jax.tree.map(jnp.zeros_like, params)
    buffer = {"kernel": jnp.array([[0.5, 0.0]])}
    sgd = optax.sgd(0.1, momentum=0.9)
    dense, state = params, sgd.init(params)
    state = (state[0]._replace(trace=buffer), *state[1:])
    for _ in range(3):
        updates, state = sgd.update(no_grads, state, dense)
        dense = optax.apply_updates(dense, updates)
    # -0.1 * 0.5 * (0.9 + 0.81 + 0.729), the card's -0.1220
    assert float(dense["kernel"][0, 0]) == pytest.approx(-0.12195)

    tx = jp.sparsify(sgd, jp.fixed({"kernel": jnp.array([[False, True]])}))
    state = tx.init(params)
    trace, *rest = state.inner_state
    state = state._replace(inner_state=(trace._replace(trace=buffer), *rest))
    for _ in range(3):
        updates, state = tx.update(no_grads, state, params)
        params = optax.apply_updates(params, updates)
    assert params["kernel"].tolist() == [[0.0, 1.0]]
    assert state.inner_state[0].trace["kernel"].tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_weight_that_is_not_finite_is_healed_by_apply_masks(bad):
    """No number that is added to it makes it zero: once is enough, and it is counted until then."""
    tx = jp.sparsify(optax.adam(0.1), jp.fixed(MASKS))
    params = {**PARAMS, "kernel": PARAMS["kernel"].at[0, 1].set(bad)}
    grads, state = PARAMS, tx.init(PARAMS)
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    assert np.isnan(params["kernel"][0, 1]) and params["kernel"][1, 0] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))  # nothing else is hurt
    with pytest.warns(UserWarning, match="1 weights are not zero.*was nan or inf: params = apply"):
        assert jp.report(params, MASKS).prunable.outside == 1
    params = jp.apply_masks(params, jp.get_masks(state))
    for _ in range(2):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_array_equal(params["kernel"] == 0, ~MASKS["kernel"])


def test_steps_count_updates():
    _, state = run(jp.sparsify(optax.sgd(0.1), one_shot()), steps=4)
    assert int(state.step) == 4


# --- what reaches whom ---------------------------------------------------------------------------


def test_the_inner_optimizer_sees_a_sparse_world():
    seen = []
    tx = jp.sparsify(listening(seen), jp.fixed(MASKS))
    grads = {"kernel": jnp.array([[5.0, jnp.inf], [jnp.nan, 7.0]]), "bias": jnp.ones(2)}
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
    assert seen[-1]["grads"]["kernel"].tolist() == [[5, 0], [0, 7]]
    assert seen[-1]["params"]["kernel"].tolist() == [[3, 0], [0, -4]]
    assert seen[-1]["grads"]["bias"].tolist() == [1, 1]
    assert updates["kernel"].tolist() == [[-5, 1], [-2, -7]]


def test_the_transform_sees_params_gradients_step_and_state():
    seen = []
    tx = jp.sparsify(optax.adam(0.1), recording(seen))
    state = tx.init(PARAMS)
    for step in range(2):
        _, new = tx.update(PARAMS, state, PARAMS, value=3.0)
        context = seen[-1]
        assert context["params"] is PARAMS and context["grads"] is PARAMS
        assert int(context["step"]) == step and context["step"].dtype == jnp.int32
        assert context["opt_state"] is state.inner_state
        assert context["value"] == 3.0
        state = new


def test_extra_arguments_reach_the_inner_optimizer():
    seen = []
    tx = jp.sparsify(optax.chain(optax.clip(9.0), listening(seen)), recording([]))
    tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=2.0, loss_fn=None)
    assert seen[-1]["value"] == 2.0 and seen[-1]["loss_fn"] is None


def test_an_optimizer_that_needs_the_loss():
    # the first loss is the best, and each of three that are no better halves the scale
    tx = jp.sparsify(
        optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(factor=0.5, patience=1)),
        one_shot(),
    )
    _, state = run(tx, steps=4, value=jnp.float32(1.0))
    assert float(state.inner_state[1].scale) == 0.125


def test_an_optimizer_that_takes_no_extra_arguments():
    seen = []

    def update(grads, state, params=None):
        seen.append(params)
        return grads, state

    tx = jp.sparsify(optax.GradientTransformation(lambda p: (), update), recording([]))
    tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=2.0)
    assert seen[-1]["kernel"].tolist() == PARAMS["kernel"].tolist()


def test_extra_arguments_reach_a_score_of_ones_own():
    def score(params, *, value, **_):
        return jax.tree.map(lambda w: w * value, params)

    tx = jp.sparsify(optax.sgd(0.0), jp.prune(score, jp.uniform, 0.5))
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=-1.0)
    # with the sign turned, -1 and -4 are the largest
    assert jp.get_masks(state)["kernel"].tolist() == [[False, True], [False, True]]


# --- params of many kinds ------------------------------------------------------------------------


def test_unusual_leaves_beside_a_kernel():
    odd = {"none": None, "nothing": (), "empty": jnp.ones((0, 3)), "scalar": jnp.float32(2)}
    after, state = run(jp.sparsify(optax.adam(0.1), one_shot()), {**PARAMS, **odd})
    assert jax.tree.structure(after) == jax.tree.structure({**PARAMS, **odd})
    assert (np.asarray(after["kernel"]) == 0).sum() == 2 and float(after["scalar"]) < 2
    masks = jp.get_masks(state)
    assert {name: masks[name] for name in odd} == dict.fromkeys(odd) | {"nothing": ()}


def test_a_bare_array():
    after, state = run(
        jp.sparsify(optax.adam(0.1), one_shot(prunable=lambda p: p)), PARAMS["kernel"]
    )
    assert ((after == 0) == ~jp.get_masks(state)).all() and int((after == 0).sum()) == 2


def test_moments_of_a_leaf_that_is_never_pruned_are_left_alone():
    params = {"kernel": PARAMS["kernel"], "frozen": PARAMS["kernel"]}
    tx = jp.sparsify(optax.adam(0.1), one_shot(prunable=jp.matching("kernel")))
    _, state = run(tx, params)
    mu = state.inner_state[0].mu
    assert (np.asarray(mu["kernel"]) == 0).sum() == 2 and (np.asarray(mu["frozen"]) != 0).all()


def test_the_state_keeps_shapes_and_dtypes_in_low_precision():
    params = jax.tree.map(lambda w: w.astype(jnp.bfloat16), PARAMS)
    tx = jp.sparsify(optax.adam(0.1), one_shot())
    before = tx.init(params)
    after, state = run(tx, params)
    kinds = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert kinds(state) == kinds(before)
    assert after["kernel"].dtype == jnp.bfloat16 and int((after["kernel"] == 0).sum()) == 2


# --- wrappers inside and outside -----------------------------------------------------------------

INSIDE = {
    "chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
    "partition": lambda: optax.partition({"a": optax.adam(0.1), "b": optax.sgd(0.1, 0.9)}, LABELS),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(0.1), 3),
    "ema": lambda: optax.chain(optax.adam(0.1), optax.ema(0.9)),
    "named_chain": lambda: optax.named_chain(("clip", optax.clip(1.0)), ("adam", optax.adam(0.1))),
    "masked": lambda: optax.masked(optax.adam(0.1), {"kernel": True, "bias": False}),
    "conditionally_mask": lambda: optax.conditionally_mask(optax.adam(0.1), even),
    "conditionally_transform": lambda: optax.conditionally_transform(optax.adam(0.1), even),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
}


def even(step, **_):
    return step % 2 == 0


OUTSIDE = {
    "chain": lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
    "named_chain": lambda tx: optax.named_chain(("clip", optax.clip(1.0)), ("sparse", tx)),
    "masked": lambda tx: optax.masked(tx, {"kernel": True, "bias": False}),
    "partition": lambda tx: optax.partition({"a": tx, "b": optax.sgd(0.1, 0.9)}, LABELS),
    "inject_hyperparams": lambda tx: optax.inject_hyperparams(lambda lr: tx)(lr=0.1),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 1),
    "conditionally_mask": lambda tx: optax.conditionally_mask(tx, even),
}


@pytest.mark.parametrize("name", INSIDE)
def test_wrappers_inside(name):
    params, state = run(jp.sparsify(INSIDE[name](), jp.fixed(MASKS)), steps=4)
    assert ((params["kernel"] != 0) == MASKS["kernel"]).all()
    assert (params["bias"] != 1).all()
    assert float(jp.sparsity(jp.get_masks(state))) == 0.5


@pytest.mark.parametrize("name", OUTSIDE)
def test_wrappers_outside(name):
    params, state = run(OUTSIDE[name](jp.sparsify(optax.adam(0.1), one_shot())), steps=4)
    assert ((params["kernel"] != 0) == MASKS["kernel"]).all()
    assert float(jp.sparsity(jp.get_masks(state))) == 0.5


# optax's own muon and masked have holes there, which a tree of specs has not
MAPPED = {
    "alone": lambda tx: tx,
    "multi_steps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    **{name: OUTSIDE[name] for name in ("chain", "named_chain", "inject_hyperparams")},
    "apply_if_finite": OUTSIDE["apply_if_finite"],
}
SPECS = {"kernel": "rows", "bias": "whole"}


@pytest.mark.parametrize("name", MAPPED)
@pytest.mark.parametrize("masked", ["sparsify", "train_only", "keep_dense", "track_masks"])
def test_tree_map_params_maps_moments_as_it_does_without_masks(name, masked):
    """So are shardings of optimizer states made. Masks are no params there: they have holes."""
    inner = lambda: optax.adam(0.1)
    tx = {
        "sparsify": lambda: jp.sparsify(inner(), one_shot()),
        "train_only": lambda: jp.train_only(inner(), one_shot()),
        "keep_dense": lambda: jp.keep_dense(inner(), jp.dpf(0.5, jp.uniform)),
        "track_masks": lambda: optax.chain(jp.track_masks(one_shot()), inner()),
    }[masked]
    own, plain = MAPPED[name](tx()), MAPPED[name](inner())
    specs = lambda tx: optax.tree_map_params(
        tx, lambda _, spec: spec, tx.init(PARAMS), SPECS, transform_non_params=lambda _: "none"
    )
    count = lambda tree, spec: jax.tree.leaves(tree).count(spec)
    for spec in SPECS.values():
        assert count(specs(own), spec) == count(specs(plain), spec) >= 2
    # and what is no param is left as it is
    state = own.init(PARAMS)
    same = optax.tree_map_params(own, lambda x: x, state)
    jax.tree.map(np.testing.assert_array_equal, same, state)


def test_multi_steps_outside_prunes_when_it_updates():
    tx = optax.MultiSteps(jp.sparsify(optax.sgd(0.1), one_shot()), 3)
    dense, _ = run(tx, steps=2)
    assert (dense["kernel"] != 0).all()
    sparse, state = run(tx, steps=3)
    assert ((sparse["kernel"] != 0) == MASKS["kernel"]).all()
    assert int(state.inner_opt_state.step) == 1


def test_apply_if_finite_outside_skips_a_step_with_nan():
    tx = optax.apply_if_finite(jp.sparsify(optax.sgd(0.1), one_shot()), 3)
    grads = {"kernel": jnp.full((2, 2), jnp.nan), "bias": jnp.ones(2)}
    params, state = run(tx, steps=1, grads=grads)
    np.testing.assert_array_equal(params["kernel"], PARAMS["kernel"])
    assert int(state.inner_state.step) == 0 and jp.get_masks(state)["kernel"].all()


def test_two_optimizers_of_two_halves_each_with_its_masks():
    tx = optax.partition(
        {
            "a": jp.sparsify(optax.adam(0.1), one_shot()),
            "b": jp.sparsify(optax.sgd(0.1), one_shot(prunable=jp.matching("bias"))),
        },
        LABELS,
    )
    params, _ = run(tx)
    assert int((params["kernel"] == 0).sum()) == 2 and int((params["bias"] == 0).sum()) == 1


# --- norms and averages ---------------------------------------------------------------------------

MEASURE = {
    "clip_by_global_norm": lambda: optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.1)),
    "clip after adam": lambda: optax.chain(optax.scale_by_adam(), optax.clip_by_global_norm(0.1)),
    "lamb": lambda: optax.lamb(0.1),
}


@pytest.mark.parametrize("name", MEASURE)
def test_a_norm_inside_is_that_of_the_network_of_kept_weights(name):
    """Training of the kept weights alone, as a network without others, is the same training."""
    mask, tx = MASKS["kernel"], jp.sparsify(MEASURE[name](), jp.fixed(MASKS))
    params = jp.apply_masks(PARAMS, MASKS)
    alone = {"kernel": params["kernel"][mask], "bias": params["bias"]}
    small, state, alone_state = MEASURE[name](), tx.init(params), MEASURE[name]().init(alone)
    for _ in range(3):
        grads = {"kernel": jnp.array([[1.0, 20.0], [-30.0, 2.0]]), "bias": jnp.ones(2)}
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        grads = {"kernel": grads["kernel"][mask], "bias": grads["bias"]}
        updates, alone_state = small.update(grads, alone_state, alone)
        alone = optax.apply_updates(alone, updates)
    np.testing.assert_allclose(params["kernel"][mask], alone["kernel"], rtol=1e-6)
    np.testing.assert_allclose(params["bias"], alone["bias"], rtol=1e-6)


def test_a_norm_before_counts_what_is_pruned():
    """So it goes inside: of gradients 3, 4 and 12, of which 12 is pruned, the norm is 5, not 13."""
    params = {"kernel": jnp.ones((1, 3))}
    grads, masks = {"kernel": jnp.array([[3.0, 4.0, 12.0]])}, {"kernel": jnp.arange(3)[None] < 2}
    clip, sgd = optax.clip_by_global_norm(1.0), optax.sgd(1.0)
    inside = jp.sparsify(optax.chain(clip, sgd), jp.fixed(masks))
    before = optax.chain(clip, jp.sparsify(sgd, jp.fixed(masks)))
    for tx, norm in (inside, 5), (before, 13):
        updates, _ = tx.update(grads, tx.init(params), params)
        np.testing.assert_allclose(updates["kernel"], [[-3 / norm, -4 / norm, -1]], rtol=1e-6)


def test_an_average_of_params_is_masked_when_it_is_used():
    """It remembers what was there before it was pruned; masked it is the average of the kept."""
    tx = jp.sparsify(optax.sgd(0.1), jp.every(1, one_shot(), start=2))
    params, average, state = PARAMS, PARAMS, tx.init(PARAMS)
    for _ in range(5):
        updates, state = tx.update(PARAMS, state, params)
        params = optax.apply_updates(params, updates)
        average = optax.incremental_update(params, average, 0.5)
    assert (average["kernel"] != 0).all()
    sparse = jp.apply_masks(average, jp.get_masks(state))
    np.testing.assert_array_equal(sparse["kernel"] == 0, ~MASKS["kernel"])
    np.testing.assert_array_equal(
        sparse["kernel"][MASKS["kernel"]], average["kernel"][MASKS["kernel"]]
    )


def test_an_average_of_updates_goes_inside():
    inside = jp.sparsify(optax.chain(optax.sgd(0.1), optax.ema(0.9)), one_shot())
    params, _ = run(inside)
    np.testing.assert_array_equal(params["kernel"] == 0, ~MASKS["kernel"])
    outside, state = run(optax.chain(jp.sparsify(optax.sgd(0.1), one_shot()), optax.ema(0.9)))
    with pytest.warns(UserWarning, match="weights are not zero where their mask is False"):
        jp.report(outside, jp.get_masks(state))


# --- track_masks ---------------------------------------------------------------------------------


def test_track_masks_leaves_the_updates_alone():
    tx = optax.chain(jp.track_masks(one_shot()), optax.sgd(0.5))
    params, state = run(tx, steps=2)
    np.testing.assert_array_equal(params["kernel"], PARAMS["kernel"] - 1)
    assert jp.get_masks(state)["kernel"].tolist() == MASKS["kernel"].tolist()
    assert int(state[0].step) == 2


def test_track_masks_gives_the_gradients_that_reach_it():
    seen = []
    tx = optax.chain(optax.scale(2.0), jp.track_masks(recording(seen)))
    tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=7.0)
    np.testing.assert_array_equal(seen[0]["grads"]["kernel"], 2 * PARAMS["kernel"])
    assert seen[0]["opt_state"] is None and seen[0]["value"] == 7.0 and int(seen[0]["step"]) == 0


def test_track_masks_has_no_moments_for_fisher():
    tx = optax.chain(jp.track_masks(jp.prune(jp.fisher, jp.uniform, 0.5)), optax.adam(0.1))
    with pytest.raises(ValueError, match="second moment `nu` of 'kernel'"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda t: jp.sparsify(optax.adam(0.1), t), jp.track_masks])
def test_update_without_params(make):
    tx = make(one_shot())
    with pytest.raises(ValueError, match="needs the params to prune them") as error:
        tx.update(PARAMS, tx.init(PARAMS))
    assert "call update(grads, state, params)" in str(error.value)


def test_the_arguments_swapped():
    with pytest.raises(TypeError, match="sparsify needs a mask transform") as error:
        jp.sparsify(one_shot(), optax.adam(0.1))
    assert "got GradientTransformation" in str(error.value)
    assert "The optimizer comes first." in str(error.value)


@pytest.mark.parametrize("maker", [jp.prune, jp.fixed, jp.every])
def test_a_transform_that_was_not_called(maker):
    with pytest.raises(TypeError, match=f"got {maker.__name__}. Call it: it makes a transform"):
        jp.sparsify(optax.adam(0.1), maker)
    with pytest.raises(TypeError, match=f"track_masks needs a mask transform.*{maker.__name__}"):
        jp.track_masks(maker)


@pytest.mark.parametrize(
    ("transform", "kind"),
    [
        (None, "NoneType"),
        (0.9, "float"),
        (MASKS, "dict"),
        (optax.adam(0.1), "Gradient"),
        ((1, 2), "tuple"),
    ],
)
def test_no_transform(transform, kind):
    with pytest.raises(TypeError, match=f"sparsify needs a mask transform.*got {kind}"):
        jp.sparsify(optax.adam(0.1), transform)


def test_an_optimizer_that_was_not_called():
    with pytest.raises(TypeError, match=r"sparsify needs an optax optimizer.*got adam\.") as error:
        jp.sparsify(optax.adam, one_shot())
    assert "Call it" in str(error.value)


@pytest.mark.parametrize(("inner", "kind"), [(None, "NoneType"), ("adam", "str"), (0.1, "float")])
def test_no_optimizer(inner, kind):
    with pytest.raises(TypeError, match=f"sparsify needs an optax optimizer.*got {kind}"):
        jp.sparsify(inner, one_shot())


def test_multi_steps_as_it_is():
    with pytest.raises(TypeError, match="got MultiSteps") as error:
        jp.sparsify(optax.MultiSteps(optax.adam(0.1), 2), one_shot())
    assert "MultiSteps(...).gradient_transformation()" in str(error.value)


@pytest.mark.parametrize(
    "inner",
    [
        lambda: jp.sparsify(optax.adam(0.1), one_shot()),
        lambda: optax.chain(optax.clip(1.0), jp.sparsify(optax.adam(0.1), one_shot())),
        lambda: optax.chain(jp.track_masks(one_shot()), optax.adam(0.1)),
        lambda: optax.chain(jp.track_masks(one_shot()), jp.sparsify(optax.adam(0.1), one_shot())),
    ],
    ids=["sparsify", "in a chain", "track_masks", "both"],
)
def test_an_optimizer_with_masks_already(inner):
    with pytest.raises(ValueError, match="already has masks") as error:
        jp.sparsify(inner(), one_shot()).init(PARAMS)
    assert "jp.chain(transform, ...)" in str(error.value)


def test_masks_of_other_params_are_refused_in_init():
    with pytest.raises(ValueError, match="'kernel' has shape"):
        jp.sparsify(
            optax.adam(0.1), jp.fixed({"kernel": jnp.ones((3, 2), bool), "bias": None})
        ).init(PARAMS)
