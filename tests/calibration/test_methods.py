"""Calibrated methods on one matrix: numbers by hand, exact counts, and what they improve."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.calibration.sparsegpt import factor

METHODS = {
    "magnitude": jp.calibration.magnitude,
    "wanda": jp.calibration.wanda,
    "sparsegpt": jp.calibration.sparsegpt,
}
every_method = pytest.mark.parametrize("name", METHODS)

# rows of W are outputs here, as in the papers
W = jnp.array([[0.5, -2, 1, 0.3], [-1, 0.4, 0.6, 2]]).T
X = jnp.array([[0.0, 0, 0, -1], [0, 0, 0, 2], [2, -1, 1, 2], [1, -1, 1, 0], [2, 1, 0, 3]])
INPUTS = jp.calibration.Inputs((X[:2], X[2:]))


def error(weight):
    return float(jnp.square(X @ (weight - W)).sum())


def test_inputs_of_several_batches_are_those_of_one():
    np.testing.assert_allclose(jnp.sqrt(INPUTS.square_norms()), [3, 1.7321, 1.4142, 4.2426], 1e-4)
    np.testing.assert_allclose(INPUTS.second_moment(), X.T @ X)
    assert INPUTS.rows == 5


def test_wanda_and_magnitude_by_hand():
    weight, mask = jp.calibration.wanda(0.5)(W, INPUTS)
    assert mask.T.astype(int).tolist() == [[1, 1, 0, 0], [1, 0, 0, 1]]
    assert error(weight) == pytest.approx(5.06, abs=1e-4)
    weight, mask = jp.calibration.magnitude(0.5)(W, INPUTS)
    assert mask.T.astype(int).tolist() == [[0, 1, 1, 0], [1, 0, 0, 1]]
    assert error(weight) == pytest.approx(7.11, abs=1e-4)


def test_sparsegpt_by_hand():
    upper, dead = factor(INPUTS, 0.01)
    np.testing.assert_allclose(jnp.diag(upper), [1.5420, 1.9951, 1.1597, 0.3719], atol=1e-4)
    assert not dead.any()
    weight, mask = jp.calibration.sparsegpt(0.5)(W, INPUTS)
    assert mask.T.astype(int).tolist() == [[0, 1, 1, 1], [0, 0, 0, 1]]
    wanted = [[0, -1.5245, 2.0494, 0.4342], [0, 0, 0, 1.5354]]
    np.testing.assert_allclose(weight.T, wanted, atol=1e-4)
    assert error(weight) == pytest.approx(2.6553, abs=1e-4)
    assert error(jnp.where(mask, W, 0)) == pytest.approx(8.69, abs=1e-4)


def drawn(inputs=24, outputs=10, rows=200):
    """A matrix, and inputs that depend on each other."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, inputs)) @ rng.normal(size=(inputs, inputs))
    weight = rng.normal(size=(inputs, outputs))
    return jnp.asarray(weight, jnp.float32), jnp.asarray(x, jnp.float32)


@every_method
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5])
def test_counts_are_exact(name, sparsity):
    weight, x = drawn()
    pruned, mask = METHODS[name](sparsity)(weight, jp.calibration.Inputs((x,)))
    gone = int((~mask).sum())
    if name == "wanda":  # of each output
        assert (~mask).sum(0).tolist() == [round(sparsity * 24)] * 10
    else:
        assert gone == round(sparsity * weight.size)
    assert bool((pruned[~mask] == 0).all()) and mask.dtype == bool
    if name != "sparsegpt" or sparsity == 0:
        np.testing.assert_array_equal(pruned, jnp.where(mask, weight, 0))


@pytest.mark.full
@every_method
@pytest.mark.parametrize("n,m", [(2, 4), (4, 8), (1, 3)])
def test_n_of_m_inputs_stay(name, n, m):
    weight, x = drawn()
    _, mask = METHODS[name]((n, m))(weight, jp.calibration.Inputs((x,)))
    assert np.all(mask.reshape(-1, m, 10).sum(1) == n)


@pytest.mark.parametrize("sparsity", [0.5, (2, 4)])
def test_each_reads_more_and_loses_less(sparsity):
    weight, x = drawn()
    scale = jnp.exp(jnp.linspace(0, 3, 24))  # so that norms matter
    weight, x = weight / scale[:, None], x * scale[None]
    inputs = jp.calibration.Inputs((x[:90], x[90:]))
    lost = lambda method: sum(
        float(jnp.square(part @ (method(sparsity)(weight, inputs)[0] - weight)).sum())
        for part in inputs.batches
    )
    magnitude, wanda, sparsegpt = map(lost, METHODS.values())
    assert sparsegpt < wanda < magnitude


def test_sparsegpt_does_not_depend_on_blocks_where_the_mask_does_not():
    """N:M masks are chosen within groups: a block only sets when later inputs get the update."""
    weight, x = drawn()
    inputs = jp.calibration.Inputs((x,))
    one, other = (jp.calibration.sparsegpt((2, 4), block=n)(weight, inputs) for n in (9, 128))
    np.testing.assert_array_equal(one[1], other[1])
    np.testing.assert_allclose(one[0], other[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sparsity", [0.5, (1, 3)])
def test_sparsegpt_is_its_equation_input_by_input(sparsity):
    """21 inputs: neither the block nor the few that update each other divide them."""
    weight, x = drawn(inputs=21)
    inputs = jp.calibration.Inputs((x,))
    pruned, mask = jp.calibration.sparsegpt(sparsity, block=12)(weight, inputs)
    upper, w, kept = np.asarray(factor(inputs, 0.01)[0]), np.array(weight), np.asarray(mask)
    for i in range(21):
        if sparsity != 0.5 and i % 3 == 0:
            scores = np.square(w[i : i + 3] / np.diag(upper)[i : i + 3, None])
            np.testing.assert_array_equal(kept[i : i + 3], scores == scores.max(0))
        w -= upper[i][:, None] * (np.where(kept[i], 0, w[i]) / upper[i, i])
    np.testing.assert_allclose(pruned, np.where(kept, w, 0), rtol=1e-3, atol=1e-3)


def test_sparsegpt_beats_least_squares_only_by_the_damping():
    """With its mask, the best weights are those of least squares: no order of inputs is better."""
    weight, x = drawn()
    pruned, mask = jp.calibration.sparsegpt(0.5, damping=1e-6)(weight, jp.calibration.Inputs((x,)))
    lost = jnp.square(x @ (pruned - weight)).sum(0)
    for o in range(10):
        some = np.asarray(x)[:, np.asarray(mask[:, o])]
        target = np.asarray(x @ weight[:, o])
        best = np.linalg.lstsq(some, target, rcond=None)[0]
        least = np.square(some @ best - target).sum()
        assert least <= lost[o] * (1 + 1e-3)
    # and the last inputs to be visited can only be made up for by nothing
    assert float(lost.sum()) < float(jnp.square(x @ (jnp.where(mask, weight, 0) - weight)).sum())


def test_dead_inputs_lose_their_weights():
    weight, x = drawn()
    x = x.at[:, 5].set(0)
    pruned, mask = jp.calibration.sparsegpt(0.5)(weight, jp.calibration.Inputs((x,)))
    assert bool((pruned[5] == 0).all()) and bool(jnp.isfinite(pruned).all())
    assert int(mask.sum()) == 120


@every_method
def test_jit_and_vmap(name):
    weight, x = drawn()
    method = METHODS[name](0.5)
    plain = method(weight, jp.calibration.Inputs((x,)))
    both = jax.jit(jax.vmap(lambda w, x: method(w, jp.calibration.Inputs((x,)))))(
        jnp.stack([weight, -weight]), jnp.stack([x, x])
    )
    for i, sign in enumerate((1, -1)):
        np.testing.assert_array_equal(both[1][i], plain[1])
        np.testing.assert_allclose(both[0][i], sign * plain[0], rtol=1e-3, atol=1e-4)


@every_method
def test_clear_errors(name):
    method = METHODS[name]
    with pytest.raises(
        ValueError, match=r"fraction pruned, in \[0, 1\); got 50. For 50% write 0.5"
    ):
        method(50)
    with pytest.raises(ValueError, match=r"1 <= n <= m; got nm\(5, 4\)"):
        method((5, 4))
    weight, x = drawn(inputs=6)
    with pytest.raises(ValueError, match="divisible by 4"):
        method((2, 4))(weight, jp.calibration.Inputs((x,)))


def test_sparsegpt_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match=r"a block has at least the 8 inputs of \(4, 8\); got 4"):
        jp.calibration.sparsegpt((4, 8), block=4)
    with pytest.raises(ValueError, match="damping must be positive; got 0"):
        jp.calibration.sparsegpt(0.5, damping=0)
