"""Gradual structured pruning: the laws of masks, whole neurons, and a small network at the end."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.coupling.networks import NETWORKS, built
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
        kept = jp.structured.kept(STRUCTURE, jp.get_masks(state))
        return (params, state), jnp.stack([own.sum() for own in kept.values()])

    return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=steps))(params)


@pytest.mark.full
def test_gradually_whole_neurons_go_and_stay_away():
    score = jp.structured.normalized(jp.structured.per_group(STRUCTURE, jp.saliency))
    sparsity = optax.linear_schedule(0.0, 0.75, 8)
    transform = jp.every(2, jp.structured.prune(STRUCTURE, score, sparsity=sparsity))
    tx = jp.sparsify(optax.adam(1e-2), transform)
    (params, state), left = run(tx, PARAMS, 10)
    wanted = [72 - round(float(sparsity(step // 2 * 2)) * 72) for step in range(10)]
    assert left.sum(1).tolist() == wanted
    assert (np.diff(left, axis=0) <= 0).all()
    masks = jp.get_masks(state)
    kept = jp.structured.kept(STRUCTURE, masks)
    jax.tree.map(np.testing.assert_array_equal, jp.structured.masks(STRUCTURE, kept), masks)
    assert all((np.asarray(w)[~np.asarray(m)] == 0).all() for w, m in zip(
        jax.tree.leaves(params), jax.tree.leaves(masks), strict=True))  # fmt: skip
    small = jp.compact(STRUCTURE, params, kept)
    np.testing.assert_allclose(small.fn(small.params, X), FN(params, X), rtol=1e-4, atol=1e-5)


def test_with_a_number_it_prunes_once():
    transform = jp.structured.prune(STRUCTURE, jp.structured.per_group(STRUCTURE), jp.uniform, 0.5)
    tx = jp.sparsify(optax.sgd(0.1), transform)
    _, left = run(tx, PARAMS, 3)
    assert left.tolist() == [[4, 32]] * 3


@pytest.mark.full
def test_of_params_whose_statistics_were_analyzed_too():
    """With batch norm variables are analyzed, and the optimizer holds the params alone."""
    variables, x = built("batch norm")
    fn = NETWORKS["batch norm"].module.apply
    structure = jp.analyze(fn, variables, x)
    transform = jp.structured.prune(structure, jp.structured.per_group(structure), jp.uniform, 0.5)
    tx = jp.sparsify(optax.adam(1e-2), transform)
    params, stats = variables["params"], variables["batch_stats"]
    state = tx.init(params)
    loss = lambda p: (fn({"params": p, "batch_stats": stats}, x) ** 2).mean()
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    params = optax.apply_updates(params, updates)
    kept = jp.structured.kept(structure, jp.get_masks(state))
    assert [int(own.sum()) for own in kept.values()] == [4, 2]
    masks = jp.structured.masks(structure, kept)["params"]
    jax.tree.map(np.testing.assert_array_equal, jp.get_masks(state), masks)
    pruned = {"params": params, "batch_stats": stats}
    small = jp.compact(structure, pruned, kept)
    masked = jp.apply_masks(pruned, jp.structured.masks(structure, kept))
    np.testing.assert_allclose(small.fn(small.params, x), fn(masked, x), rtol=1e-4, atol=1e-5)
    moments = jp.structured.shrink(structure, state, kept)
    jax.tree.map(
        lambda w, m: np.testing.assert_equal(w.shape, m.shape),
        small.params["params"],
        moments.inner_state[0].mu,
    )


def test_what_is_pruned_stays_pruned_whatever_it_scores_later():
    """Scores turn round at every step: of what is left the best go next, and none returns."""

    def score(params, *, step, **_):
        up = {"a": jnp.arange(8.0), "b": jnp.arange(64.0)}
        return {name: jnp.where(step % 2 == 0, s, -s) for name, s in up.items()}

    sparsity = optax.linear_schedule(0.0, 0.5, 4)  # an eighth of each group a step
    transform = jp.structured.prune(STRUCTURE, score, jp.uniform, sparsity)
    state, gone = transform.init(PARAMS), []
    for step in range(5):
        state = transform.update(state, PARAMS, grads=PARAMS, step=step, opt_state=())
        kept = jp.structured.kept(STRUCTURE, state.masks)["a"]
        gone.append(np.flatnonzero(~np.asarray(kept)).tolist())
    # of eight: nothing, then the highest, the lowest, the highest, the lowest
    assert gone == [[], [7], [0, 7], [0, 6, 7], [0, 1, 6, 7]]


def test_only_the_groups_that_are_named_lose_neurons():
    score = jp.structured.per_group(STRUCTURE)
    tx = jp.sparsify(optax.sgd(0.1), jp.structured.prune(STRUCTURE, score, groups=["b"]))
    _, left = run(tx, PARAMS, 2)
    assert left.tolist() == [[8, 32]] * 2
    said = raised(lambda: jp.structured.prune(STRUCTURE, score, groups=["c"]))
    assert "the rule 'c' matches no group; the groups are 'a', 'b'." in said


def test_bad_input():
    score = jp.structured.per_group(STRUCTURE)
    assert "in [0, 1)" in raised(lambda: jp.structured.prune(STRUCTURE, score, sparsity=1.5))
    other = jp.structured.prune(STRUCTURE, score)
    assert "structured.prune: there was no 'z'" in raised(lambda: other.init(weights(z=(2, 2))))
    frozen = jp.analyze(FN, PARAMS, X, freeze=["*"])
    assert "there is no group to prune" in raised(lambda: jp.structured.prune(frozen, score))
