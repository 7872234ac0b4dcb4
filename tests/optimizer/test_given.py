"""What the wrappers of optax are given: refused where it does not fit, and left to its owner."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune.base import MaskState, MaskTransform

PARAMS = {"kernel": jnp.array([[3.0, -1.0], [2.0, -4.0]]), "bias": jnp.ones(2)}
MASKS = {"kernel": jnp.array([[True, False], [False, True]]), "bias": None}
WRAPPED = {
    "sparsify": lambda t: jp.sparsify(optax.sgd(0.1), t),
    "train_only": lambda t: jp.train_only(optax.sgd(0.1), t),
    "keep_dense": lambda t: jp.keep_dense(optax.sgd(0.1), t),
    "track_masks": jp.track_masks,
}
wrappers = pytest.mark.parametrize("name", WRAPPED)


@wrappers
def test_gradients_by_example_are_named_as_gradients(name):
    tx = WRAPPED[name](jp.fixed(MASKS))
    grads = jax.tree.map(lambda w: jnp.ones((5, *w.shape)), PARAMS)
    with pytest.raises(
        ValueError, match=r"the gradients must be .* 'bias' has shape \(5, 2\)"
    ) as error:
        tx.update(grads, tx.init(PARAMS), PARAMS)
    assert "wanted (2,)" in str(error.value)
    assert "differentially_private_aggregate" in str(error.value)
    with pytest.raises(ValueError, match=r"'bias' has shape \(3,\), wanted"):
        tx.update({**PARAMS, "bias": jnp.ones(3)}, tx.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match=r"'bias' has shape \(2, 1\), wanted"):
        tx.update({**PARAMS, "bias": jnp.ones((2, 1))}, tx.init(PARAMS), PARAMS)


def test_gradients_by_example_are_aggregated_before():
    """The way out that the error names."""
    aggregate = optax.contrib.differentially_private_aggregate(1e6, 0.0, key=0)
    tx = optax.chain(aggregate, WRAPPED["sparsify"](jp.fixed(MASKS)))
    grads = jax.tree.map(lambda w: jnp.stack([w, 3 * w]), PARAMS)
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["kernel"], [[-0.6, 1.0], [-2.0, 0.8]], rtol=1e-6)


@wrappers
@pytest.mark.parametrize("grads", [{"kernel": PARAMS["kernel"]}, {**PARAMS, "bias": None}])
def test_a_gradient_that_is_missing(name, grads):
    tx = WRAPPED[name](jp.fixed(MASKS))
    with pytest.raises(
        ValueError, match=f"{name}: the gradients must be like the params: missing: 'bias'"
    ):
        tx.update(grads, tx.init(PARAMS), PARAMS)


@wrappers
def test_a_gradient_of_no_parameter(name):
    tx = WRAPPED[name](jp.fixed(MASKS))
    with pytest.raises(
        ValueError,
        match=f"{name}: the gradients must be like the params: not in the params: 'other'",
    ):
        tx.update({**PARAMS, "other": jnp.ones(2)}, tx.init(PARAMS), PARAMS)


def test_a_leaf_that_is_absent_has_no_gradient():
    tx = WRAPPED["sparsify"](jp.fixed({**MASKS, "none": None}))
    params = {**PARAMS, "none": None}
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["none"] is None


def test_the_state_of_the_optimizer_without_masks():
    adam = optax.adam(0.1)
    tx = jp.sparsify(adam, jp.fixed(MASKS))
    state = adam.init(PARAMS)
    with pytest.raises(TypeError, match="sparsify needs a SparsifyState") as error:
        tx.update(PARAMS, state, PARAMS)
    assert "got a state of type tuple (ScaleByAdamState, EmptyState)" in str(error.value)
    # the way out
    _, state = tx.update(PARAMS, tx.init(PARAMS)._replace(inner_state=state), PARAMS)
    assert int(state.inner_state[0].count) == 1


@pytest.mark.parametrize(
    "transform",
    [
        lambda own: jp.prune(jp.magnitude, jp.uniform, 0.5, prunable=own),
        lambda own: jp.dpf(0.5, jp.uniform, prunable=own),
        lambda own: jp.sap(prunable=own),
        lambda own: jp.rigl(jax.random.key(0), 0.5, prunable=own),
        lambda own: jp.top_kast(0.5, 0.2, prunable=own),
    ],
    ids=["prune", "dpf", "sap", "rigl", "top_kast"],
)
def test_prunable_that_chooses_integers(transform):
    params = {**PARAMS, "ids": jnp.arange(4).reshape(2, 2)}
    with pytest.raises(TypeError, match="prunable chose 'ids', of int32") as error:
        transform(lambda p: p).init(params)
    assert "exclude='ids'" in str(error.value)


# --- what is handed out may be donated ------------------------------------------------------------


def constant(masks):
    """A user's transform, whose init hands out its constants."""
    return MaskTransform(lambda params: MaskState(masks), lambda state, params, **_: state)


@wrappers
@pytest.mark.parametrize("transform", [jp.fixed, constant], ids=["fixed", "a user's"])
def test_a_donated_state_leaves_the_masks_to_their_owner(name, transform):
    masks = {**MASKS, "kernel": MASKS["kernel"] & True}
    tx = WRAPPED[name](transform(masks))

    def step(params, state):
        updates, state = tx.update(params, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=1)
    for _ in range(2):
        state = tx.init(PARAMS)
        step(PARAMS, state)
        assert jax.tree.leaves(state)[0].is_deleted() and not masks["kernel"].is_deleted()


def test_masks_that_share_an_array_are_donated_each():
    same = MASKS["kernel"] & True
    params = {"a": PARAMS["kernel"], "b": PARAMS["kernel"] + 1}
    transform = jp.fixed({"a": same, "b": same})
    first = jax.jit(lambda state: state, donate_argnums=0)(transform.init(params))
    assert first.masks["a"].tolist() == first.masks["b"].tolist() == same.tolist()
