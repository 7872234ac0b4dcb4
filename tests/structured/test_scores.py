"""Scores of groups: numbers small enough to check by eye."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.coupling.networks import NETWORKS, built
from tests.coupling.test_stated import raised

PARAMS = {
    "a": {
        "kernel": jnp.array([[1.0, -2.0, 0.5], [1.0, 1.0, -0.5]]),
        "scale": jnp.array([3.0, -1.0, 2.0]),
    },
    "b": {"kernel": jnp.array([[1.0], [-4.0], [2.0]])},
}
FN = lambda p, x: (x @ p["a"]["kernel"] * p["a"]["scale"][None]) @ p["b"]["kernel"]
STRUCTURE = jp.analyze(FN, PARAMS, jnp.ones((1, 2)))
GRADS = jax.tree.map(lambda w: jnp.full_like(w, 2.0), PARAMS)


def close(scores, wanted):
    (found,) = scores.values()
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_norms_are_summed_over_slices_and_averaged_over_members():
    close(jp.per_group(STRUCTURE)(PARAMS), [(2 + 1) / 2, (3 + 4) / 2, (1 + 2) / 2])
    close(jp.per_group(STRUCTURE, jp.square)(PARAMS), [(2 + 1) / 2, (5 + 16) / 2, (0.5 + 4) / 2])
    close(jp.per_group(STRUCTURE, prunable=jp.matching("*/scale"))(PARAMS), [3, 1, 2])


def test_taylor():
    close(jp.per_group(STRUCTURE, jp.saliency)(PARAMS, grads=GRADS), [3, 7, 3])
    signed = jp.per_group(STRUCTURE, jp.contribution, of=jp.abs_of_sum)
    close(signed(PARAMS, grads=GRADS), [6, 10, 4])
    assert "needs gradients" in raised(lambda: signed(PARAMS))


def test_geometric_median():
    # the filters (1, 0), (0, 1), (.5, .5), (3, 3); the third is nearest to all others
    filters = {"w": jnp.array([[1.0, 0, 0.5, 3], [0, 1, 0.5, 3]]), "v": jnp.ones((4, 1))}
    structure = jp.analyze(lambda p, x: x @ p["w"] @ p["v"], filters, jnp.ones((1, 2)))
    score = jp.per_group(structure, jp.weight, jp.matching("w"), of=jp.distances)
    close(score(filters), [5.7269, 5.7269, 4.9497, 10.7466])


def test_what_is_pruned_is_no_neighbour():
    own = {"w": jnp.array([[1.0, 0], [0, 1], [0.5, 0.5], [0, 0]])}
    alone = {"w": own["w"][:3]}
    np.testing.assert_allclose(jp.distances(own)[:3], jp.distances(alone), rtol=1e-5)


def test_lamp_and_other_normalisations():
    own = lambda params, **_: {"a": jnp.array([1.0, 2, 3, 4])}
    close(jp.lamp(own)({}), [1 / 30, 4 / 29, 9 / 25, 1])
    close(jp.normalised(own)({}), [0.4, 0.8, 1.2, 1.6])
    close(jp.normalised(own, jnp.max)({}), [0.25, 0.5, 0.75, 1])
    zero = lambda params, **_: {"a": jnp.zeros(2)}
    close(jp.normalised(zero)({}), [0, 0])


@pytest.mark.parametrize("name", ["channels first", "concat"])
def test_the_entries_of_a_neuron_are_its_own(name):
    """Of flattened, grouped, repeated and joined axes: where one is one, the others score zero."""
    variables, x = built(name)
    structure = jp.analyze(NETWORKS[name].module.apply, variables, x)
    everywhere = jp.per_group(structure, prunable=jp.matching(lambda path, w: w.ndim > 0))
    for group, (n, _) in structure.groups.items():
        masks = jp.group_masks(structure, {group: jnp.arange(n) == n - 1})
        marks = jax.tree.map(lambda m: m.astype(jnp.float32), masks)
        scores = everywhere(marks)[group]
        assert scores[-1] > 0 and not scores[:-1].any()


def test_random_is_drawn_anew_each_step():
    score = jp.random_neurons(jax.random.key(0), STRUCTURE)
    first, second = (score(PARAMS, step=step)["a"] for step in (0, 1))
    assert first.shape == (3,) and (first != second).any()
    assert "needs a key" in raised(lambda: jp.random_neurons(0, STRUCTURE), TypeError)


def test_under_jit():
    score = jp.per_group(STRUCTURE)
    jax.tree.map(np.testing.assert_allclose, jax.jit(score)(PARAMS), score(PARAMS))


def test_nothing_to_score_by():
    none = lambda params: jax.tree.map(lambda w: None, params)
    said = raised(lambda: jp.per_group(STRUCTURE, prunable=none)(PARAMS))
    assert "none of 'a/kernel', 'a/scale', 'b/kernel', the leaves of group 'a', is prunable" in said
    assert "analyze(..., freeze=...)" in said


def test_params_of_another_network():
    score = jp.per_group(STRUCTURE)
    wider = {**PARAMS, "b": {"kernel": jnp.ones((4, 1))}}
    said = raised(lambda: score(wider))
    assert "per_group: 'b/kernel' has shape (4, 1), and had (3, 1) when it was analyzed" in said
    said = raised(lambda: score({**PARAMS, "d": jnp.ones(2)}))
    assert "there was no 'd' when the function was analyzed; there were 'a/kernel', 'a/s" in said
    stack = jax.tree.map(lambda w: jnp.stack([w, 2 * w]), PARAMS)
    assert "vmap over seeds" in raised(lambda: score(stack))
    assert jax.vmap(score)(stack)["a"].shape == (2, 3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sums_are_in_float32(dtype):
    low = jax.tree.map(lambda w: w.astype(dtype), PARAMS)
    score = jp.per_group(jp.analyze(FN, low, jnp.ones((1, 2), dtype)))(low)["a"]
    assert score.dtype == jnp.float32
    np.testing.assert_allclose(score, [1.5, 3.5, 1.5], rtol=1e-2)
