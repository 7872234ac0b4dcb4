"""Scores of neurons: what the outputs lose without each, measured by removing it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.calibration.test_obspa import NETWORKS, normal

obspa, obspa_scores = jp.calibration.obspa, jp.calibration.obspa_scores


def test_the_score_is_the_error_after_the_update():
    """Three neurons, read by two matrices; the last two have nearly equal activations."""
    x = normal(0, 50, 3).at[:, 2].set(normal(0, 50, 3)[:, 1] + 0.1 * normal(5, 50))
    params = {"a": jnp.eye(3), "b": normal(1, 3, 2), "c": normal(2, 3, 4)}
    fn = lambda p, x: (x @ p["a"] @ p["b"], x @ p["a"] @ p["c"])
    structure = jp.analyze(fn, params, x)
    scores = obspa_scores(structure, params, [x[:20], x[20:]], 1e-6)["a"]
    for gone in range(3):
        kept = {"a": jnp.arange(3) != gone}
        new = obspa(structure, params, kept, [x], 1e-6)
        lost = sum(
            jnp.square(a - b).sum() / 50 for a, b in zip(fn(new, x), fn(params, x), strict=True)
        )
        assert float(scores[gone]) == pytest.approx(float(lost), rel=2e-3)
    assert scores[0] > 10 * scores[1:].max()


def test_the_inputs_of_a_neuron_may_be_several():
    """A neuron is three pixels of the flattened map that the last matrix reads."""
    params = {"a": normal(0, 6, 4), "b": normal(1, 12, 5)}
    fn = lambda p, x: (x @ p["a"]).swapaxes(1, 2).reshape(len(x), 12) @ p["b"]
    x = normal(2, 64, 3, 6)
    structure = jp.analyze(fn, params, x)
    (name,) = structure.groups
    scores = obspa_scores(structure, params, [x], 1e-5)[name]
    for gone in range(4):
        new = obspa(structure, params, {name: jnp.arange(4) != gone}, [x], 1e-5)
        lost = jnp.square(fn(new, x) - fn(params, x)).sum() / 64
        assert float(scores[gone]) == pytest.approx(float(lost), rel=2e-3, abs=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("name", ["conv", "decoder"])
@pytest.mark.parametrize("score", [obspa_scores, jp.calibration.activation_norms])
def test_every_neuron_has_a_score_and_zeros_have_none(name, score):
    fn, params, x, _, groups = NETWORKS[name]()
    structure = jp.analyze(fn, params, x)
    scores = score(structure, params, [x])
    assert {k: s.shape for k, s in scores.items()} == {
        k: (g.size,) for k, g in structure.groups.items()
    }
    assert all(np.isfinite(s).all() and (s >= 0).all() for s in scores.values())
    kept = jp.pick(structure, scores, 0.5, jp.uniform, groups=groups)
    pruned = jp.apply_masks(params, jp.structured.masks(structure, kept))
    again = score(structure, pruned, [x])
    for group, mask in kept.items():
        np.testing.assert_allclose(np.asarray(again[group])[~np.asarray(mask)], 0, atol=1e-5)


def test_norms_by_hand():
    params = {"a": jnp.array([[3.0, -1.0], [0.0, 2.0]]), "b": normal(0, 2, 3)}
    x = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    structure = jp.analyze(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, x)
    norms = jp.calibration.activation_norms(structure, params, [x[:1], x[1:]])
    np.testing.assert_allclose(norms["a"], [3, 4], rtol=1e-6)


def test_mistakes():
    params, x = {"a": normal(0, 2, 4), "b": normal(1, 4, 3)}, normal(2, 5, 2)
    structure = jp.analyze(lambda p, x: x @ p["a"] @ p["b"], params, x)
    with pytest.raises(ValueError, match="obspa_scores: damping must be positive; got 0"):
        obspa_scores(structure, params, [x], 0)
    with pytest.raises(ValueError, match="batches is empty"):
        obspa_scores(structure, params, [])
    with pytest.raises(ValueError, match=r"activation_norms.*'b'"):
        jp.calibration.activation_norms(structure, params, [x.at[0, 0].set(jnp.nan)])
