"""Gradual structured pruning: the laws of masks, whole neurons, and a small network at the end."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from tests.coupling.test_analyze import weights
from tests.coupling.test_stated import raised
from tests.structured.test_pick import FN, PARAMS, STRUCTURE

X = jax.random.normal(jax.random.key(1), (8, 4))


def run(tx, params, steps):
    def step(carry, _):
        params, state = carry
        grads = jax.grad(lambda p: ((FN(p, X) - 1) ** 2).mean())(params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        kept = jp.kept_neurons(STRUCTURE, jp.get_masks(state))
        return (params, state), jnp.stack([own.sum() for own in kept.values()])

    return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=steps))(params)


def test_gradually_whole_neurons_go_and_stay_away():
    score = jp.normalised(jp.per_group(STRUCTURE, jp.saliency))
    sparsity = optax.linear_schedule(0.0, 0.75, 8)
    transform = jp.every(2, jp.prune_neurons(STRUCTURE, score, sparsity=sparsity))
    tx = jp.sparsify(optax.adam(1e-2), transform)
    (params, state), left = run(tx, PARAMS, 10)
    wanted = [72 - round(float(sparsity(step // 2 * 2)) * 72) for step in range(10)]
    assert left.sum(1).tolist() == wanted
    assert (np.diff(left, axis=0) <= 0).all()
    masks = jp.get_masks(state)
    kept = jp.kept_neurons(STRUCTURE, masks)
    jax.tree.map(np.testing.assert_array_equal, jp.group_masks(STRUCTURE, kept), masks)
    assert all((np.asarray(w)[~np.asarray(m)] == 0).all() for w, m in zip(
        jax.tree.leaves(params), jax.tree.leaves(masks), strict=True))  # fmt: skip
    small = jp.compact(STRUCTURE, params, kept)
    np.testing.assert_allclose(small.fn(small.params, X), FN(params, X), rtol=1e-4, atol=1e-5)


def test_with_a_number_it_prunes_once():
    transform = jp.prune_neurons(STRUCTURE, jp.per_group(STRUCTURE), jp.uniform, 0.5)
    tx = jp.sparsify(optax.sgd(0.1), transform)
    _, left = run(tx, PARAMS, 3)
    assert left.tolist() == [[4, 32]] * 3


def test_bad_input():
    score = jp.per_group(STRUCTURE)
    assert "in [0, 1)" in raised(lambda: jp.prune_neurons(STRUCTURE, score, sparsity=1.5))
    other = jp.prune_neurons(STRUCTURE, score)
    assert "belong to other params" in raised(lambda: other.init(weights(z=(2, 2))))
    frozen = jp.analyze(FN, PARAMS, X, freeze=["*"])
    assert "there is no group to prune" in raised(lambda: jp.prune_neurons(frozen, score))
