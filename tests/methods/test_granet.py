"""GraNet: the worked step, its schedule, and sparse starts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.transforms import loss, tiny_params

KEY = jax.random.key(0)
PARAMS = {"a": jnp.array([0.8, -0.1, 0.5, 0.3]), "b": jnp.array([0.05, -0.9, 0.2, -0.4, 0.6, 0.15])}
GRADS = {"a": jnp.array([0.0, 0.9, 0.1, 0.2]), "b": jnp.array([0.8, 0.1, 0.05, 0.3, 0.2, 0.7])}
ALL = jax.tree.map(lambda w: jnp.ones(w.shape, bool), PARAMS)


def granet(sparsity, fraction=0.5, **kwargs):
    return jp.granet(KEY, sparsity, fraction, prunable=lambda params: params, **kwargs)


def updated(rule, masks=ALL, step=0):
    return rule.update(jp.MaskState(masks), PARAMS, grads=GRADS, step=step).masks


@pytest.mark.full
def test_the_worked_step():
    # pruned to six of ten: a keeps 0, 2, 3 and b 1, 3, 4; then two of three are rewired in each
    pruned = updated(granet(optax.constant_schedule(0.4), fraction=0.0))
    np.testing.assert_array_equal(pruned["a"], jnp.array([1, 0, 1, 1], bool))
    np.testing.assert_array_equal(pruned["b"], jnp.array([0, 1, 0, 1, 1, 0], bool))
    masks = updated(granet(optax.constant_schedule(0.4)))
    np.testing.assert_array_equal(masks["a"], jnp.array([1, 1, 0, 1], bool))
    np.testing.assert_array_equal(masks["b"], jnp.array([1, 1, 0, 0, 0, 1], bool))


def test_in_the_worked_step_what_returns_keeps_its_value():
    tx = jp.sparsify(optax.sgd(0.0), granet(optax.constant_schedule(0.4)))
    state = tx.init(PARAMS)._replace(mask_state=jp.MaskState(ALL))
    updates, _ = tx.update(GRADS, state, PARAMS)
    new = optax.apply_updates(PARAMS, updates)
    # index 3 of a was dropped and grew again; what was pruned a moment ago may return as well
    np.testing.assert_array_equal(new["a"], jnp.array([0.8, -0.1, 0.0, 0.3]))


def test_the_schedule_of_the_paper():
    schedule = optax.polynomial_schedule(0.5, 0.9, power=3, transition_steps=10)
    expected = [0.5, 0.6084, 0.6952, 0.7628, 0.8136, 0.85, 0.8744, 0.8892, 0.8968, 0.8996]
    assert [float(schedule(k)) for k in range(10)] == pytest.approx(expected, abs=5e-5)


@pytest.mark.full
@pytest.mark.parametrize("start", [0.0, 0.5])
def test_sparsity_follows_the_schedule_and_then_only_rewires(start):
    params = tiny_params()
    schedule = optax.polynomial_schedule(start, 0.8, power=3, transition_steps=6)
    tx = jp.sparsify(optax.adam(0.05), jp.every(2, jp.granet(KEY, schedule)))
    state = tx.init(params)
    assert float(jp.sparsity(jp.get_masks(state))) == pytest.approx(start, abs=1e-3)
    params = jp.apply_masks(params, jp.get_masks(state))
    step = jax.jit(lambda p, s: tx.update(jax.grad(loss)(p), s, p))
    found, trajectory = [], []
    for _ in range(12):
        updates, state = step(params, state)
        params = optax.apply_updates(params, updates)
        trajectory.append(jp.get_masks(state))
        found.append(float(jp.sparsity(trajectory[-1])))
    expected = [float(schedule(step // 2 * 2)) for step in range(12)]
    assert found == pytest.approx(expected, abs=1e-3)
    assert jp.overlap(trajectory[7], trajectory[8]) < 1 == jp.overlap(*trajectory[8:10])


def test_a_sparse_start_with_fewer_weights_than_asked_prunes_nothing():
    """Ranking must not fill up with what is pruned already."""
    few = {"a": jnp.array([1, 0, 0, 0], bool), "b": jnp.array([0, 1, 0, 0, 0, 0], bool)}
    masks = updated(granet(optax.constant_schedule(0.4), fraction=0.0), few)
    assert jp.overlap(masks, few) == 1


def test_it_is_made_under_jit_too():
    schedule = optax.polynomial_schedule(0.2, 0.8, power=3, transition_steps=6)
    init = lambda params: jp.granet(KEY, schedule).init(params).masks
    params = tiny_params()
    assert jp.overlap(jax.jit(init)(params), init(params)) == 1


# --- bad input -----------------------------------------------------------------------------------


def test_a_number_for_a_schedule():
    with pytest.raises(TypeError, match=r"its sparsity is a schedule.*got 0\.9"):
        jp.granet(KEY, 0.9)


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (optax.linear_schedule(-0.1, 0.9, 5), "starts at -0.1"),
        (optax.linear_schedule(0.1, 1.0, 5), "ends at 1"),
    ],
)
def test_a_schedule_out_of_range(schedule, said):
    with pytest.raises(ValueError, match=said):
        jp.granet(KEY, schedule)


def test_a_fraction_out_of_range():
    with pytest.raises(ValueError, match="the drop fraction is 2"):
        jp.granet(KEY, optax.constant_schedule(0.5), 2)
