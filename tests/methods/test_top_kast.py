"""Top-KAST: the worked step, A in B, and weights that can come in and go out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.transforms import tiny_params

W = {"w": jnp.array([0.9, -0.7, 0.4, -0.3, 0.2, 0.1])}
G = {"w": jnp.array([0.1, -0.2, 0.3, 0.4, 0.5, 0.6])}


def top_kast(sparsity=2 / 3, backward_sparsity=1 / 3, **kwargs):
    return jp.top_kast(sparsity, backward_sparsity, prunable=lambda params: params, **kwargs)


def worked(strength=0.01, inner=optax.identity):
    return jp.train_only(
        optax.chain(jp.dynamic.top_kast_decay(strength), inner(), optax.sgd(0.1)), top_kast()
    )


def test_the_worked_masks():
    state = top_kast().init(W)
    np.testing.assert_array_equal(np.flatnonzero(state.masks["w"]), [0, 1])
    np.testing.assert_array_equal(np.flatnonzero(state.trained["w"]), [0, 1, 2, 3])


def test_the_worked_step():
    tx = worked()
    updates, _ = tx.update(G, tx.init(W), W)
    new = optax.apply_updates(W, updates)["w"]
    np.testing.assert_allclose(
        new, jnp.array([0.8891, -0.6793, 0.3688, -0.3391, 0.2, 0.1]), atol=1e-6
    )
    np.testing.assert_array_equal(new[4:], W["w"][4:])  # outside B, to the bit


def test_the_decay_is_the_gradient_of_the_worked_penalty():
    """Half the squared norm of A, and 1 / D times that of B outside A: 1.025."""
    state = top_kast().init(W)
    in_a, in_b = state.masks["w"], state.trained["w"]

    def penalty(w):
        return 0.5 * (jnp.sum(w**2 * in_a) + jnp.sum(w**2 * (in_b & ~in_a)) / (1 / 3))

    assert float(penalty(W["w"])) == pytest.approx(1.025)
    decay = jp.dynamic.top_kast_decay(1.0)
    zeros = jax.tree.map(jnp.zeros_like, W)
    slopes, _ = decay.update(zeros, decay.init(W), W, mask_state=state)
    np.testing.assert_allclose(
        jnp.where(in_b, slopes["w"], 0.0), jax.grad(penalty)(W["w"]), rtol=1e-6
    )


def test_a_weight_of_b_grows_into_a_and_a_weight_of_a_leaves():
    tx = worked(strength=0.0)
    state = tx.init(W)
    pull = {"w": jnp.array([0.0, -6.0, -5.0, 0.0, 0.0, 0.0])}  # -.7 to -.1, .4 to .9
    updates, state = tx.update(pull, state, W)
    new = optax.apply_updates(W, updates)
    _, state = tx.update(jax.tree.map(jnp.zeros_like, W), state, new)
    np.testing.assert_array_equal(np.flatnonzero(jp.get_masks(state)["w"]), [0, 2])
    # the weight that left is now the sixth: out of B too, while the fifth came in at its old value
    np.testing.assert_array_equal(np.flatnonzero(state.mask_state.trained["w"]), [0, 2, 3, 4])


@pytest.mark.parametrize("allocation", [jp.uniform, jp.erk, jp.global_threshold])
@pytest.mark.parametrize("sparsities", [(0.9, 0.8), (0.9, 0.9), (0.5, 0.0)])
def test_a_is_in_b_and_counts_are_exact(allocation, sparsities):
    params = tiny_params()
    state = jp.top_kast(*sparsities, allocation).init(params)
    total = sum(m.size for m in jax.tree.leaves(state.masks))
    for masks, sparsity in zip(state, sparsities, strict=True):
        kept = sum(int(m.sum()) for m in jax.tree.leaves(masks))
        assert abs(kept - (1 - sparsity) * total) <= 1
    outside = jax.tree.map(lambda a, b: (a & ~b).sum(), state.masks, state.trained)
    assert sum(map(int, jax.tree.leaves(outside))) == 0


def test_leaves_without_masks_train_and_do_not_decay():
    params = {"kernel": jnp.arange(1.0, 13).reshape(3, 4), "bias": jnp.ones(4)}
    tx = jp.train_only(
        optax.chain(jp.dynamic.top_kast_decay(10.0), optax.sgd(0.1)), jp.top_kast(0.75, 0.5)
    )
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["bias"], -0.1, rtol=1e-6)


# --- bad input -----------------------------------------------------------------------------------


def test_a_backward_pass_that_is_sparser_than_the_forward_pass():
    with pytest.raises(ValueError, match=r"at most sparsity; got sparsity=0\.5, backward.*=0\.9"):
        jp.top_kast(0.5, 0.9)


@pytest.mark.parametrize("sparsities", [(1.0, 0.5), (0.5, -0.1)])
def test_a_sparsity_out_of_range(sparsities):
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        jp.top_kast(*sparsities)


def test_decay_outside_train_only():
    tx = optax.chain(jp.dynamic.top_kast_decay(0.1), optax.sgd(0.1))
    with pytest.raises(ValueError, match="top_kast_decay reads the masks that train_only"):
        tx.update(G, tx.init(W), W)
    sparse = jp.sparsify(tx, jp.rigl(jax.random.key(0), 0.5, prunable=lambda params: params))
    with pytest.raises(ValueError, match="top_kast_decay reads the masks that train_only"):
        sparse.update(G, sparse.init(W), W)


@pytest.mark.parametrize("strength", [-0.1, float("nan")])
def test_a_strength_out_of_range(strength):
    with pytest.raises(ValueError, match="the strength must be at least 0"):
        jp.dynamic.top_kast_decay(strength)
