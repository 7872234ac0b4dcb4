"""SAP: the numbers of the index, counts by neuron, layer and all together, and laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.quick import quick

W = jnp.array([0.5, -0.1, 0.3, -0.02, 0.2, 0.05, -0.4, 0.08])
HALF, ONE = (0.5, 1.0), (1.0, 2.0)


def pruned(params, **options):
    """(how many of each leaf, the masks) that one update prunes."""
    transform = jp.sap(prunable=lambda p: p, **options)
    masks = jax.jit(lambda p: transform.update(transform.init(p), p).masks)(params)
    return jax.tree.map(lambda m: int((~m).sum()), masks), masks


# --- the index -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("w", "norms", "index"),
    [
        ([1.0, 1.0, 1.0, 1.0], HALF, 0.0),
        ([1.0, 1.0, 1.0, 1.0], ONE, 0.0),
        ([1.0, 0.0, 0.0, 0.0], HALF, 0.75),
        ([1.0, 0.0, 0.0, 0.0], ONE, 0.5),
        (W, HALF, 0.1757),
        (W, ONE, 0.2200),
        ([4.0, 3.0, 2.0, 1.0], ONE, 0.0871),
    ],
)
def test_index_by_hand(w, norms, index):
    assert float(jp.tickets.pq_index(jnp.array(w), *norms)) == pytest.approx(index, abs=5e-5)


def test_index_of_kept_weights_alone():
    kept = jnp.abs(W) > 0.09
    got = jp.tickets.pq_index(W, 1, 2, kept)
    assert float(got) == pytest.approx(float(jp.tickets.pq_index(W[kept], 1, 2)), abs=1e-6)


def test_index_of_leaves_taken_together():
    tree = {"a": W[:3], "none": None, "b": W[3:].reshape(5, 1)}
    masks = {"a": W[:3] > 0, "none": None, "b": W[3:].reshape(5, 1) != 0.2}
    flat = jnp.concatenate([masks["a"], masks["b"].ravel()])
    assert float(jp.tickets.pq_index(tree)) == pytest.approx(
        float(jp.tickets.pq_index(W)), abs=1e-6
    )
    got = float(jp.tickets.pq_index(tree, masks=masks))
    assert got == pytest.approx(float(jp.tickets.pq_index(W, masks=flat)), abs=1e-6)


@pytest.mark.parametrize("odd", [jnp.nan, jnp.inf])
def test_what_is_not_finite_has_no_index_and_prunes_nothing(odd):
    w = W.at[2].set(odd)
    assert jnp.isnan(jp.tickets.pq_index(w)) and jnp.isnan(jp.tickets.pq_index(w, *ONE))
    assert float(jp.tickets.pq_index(w, masks=jnp.arange(8) != 2)) == pytest.approx(
        float(jp.tickets.pq_index(jnp.delete(W, 2))), abs=1e-6
    )
    assert pruned({"a": w, "b": 4 * W})[0] == {"a": 0, "b": pruned({"b": W})[0]["b"]}


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_index_knows_no_scale(scale):
    for norms in (HALF, ONE):
        assert float(jp.tickets.pq_index(scale * W, *norms)) == pytest.approx(
            float(jp.tickets.pq_index(W, *norms)), abs=1e-6
        )


def test_index_of_nothing_is_zero():
    assert float(jp.tickets.pq_index(jnp.zeros(4))) == 0
    assert float(jp.tickets.pq_index(W, masks=jnp.zeros(8, bool))) == 0


def test_index_of_bfloat16_is_that_of_its_values():
    half = W.astype(jnp.bfloat16)
    got = jp.tickets.pq_index(half)
    assert got.dtype == jnp.float32
    assert float(got) == pytest.approx(
        float(jp.tickets.pq_index(half.astype(jnp.float32))), abs=1e-6
    )


# --- how many ------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize(
    ("w", "norms", "count"),
    [
        ([1.0, 1.0, 1.0, 1.0], HALF, 0),
        ([1.0, 1.0, 1.0, 1.0], ONE, 0),
        ([1.0, 0.0, 0.0, 0.0], HALF, 3),
        ([1.0, 0.0, 0.0, 0.0], ONE, 3),
        (W, HALF, 1),
        (W, ONE, 3),
        ([4.0, 3.0, 2.0, 1.0], ONE, 0),  # m = ceil(10^2 / 30) = 4
    ],
)
@pytest.mark.parametrize("scope", [{}, {"together": True}])
def test_counts_by_hand(w, norms, count, scope):
    p, q = norms
    w = jnp.array(w)
    assert pruned({"kernel": w}, p=p, q=q, **scope)[0] == {"kernel": count}


def test_equal_weights_are_never_pruned_however_many():
    for size in (3, 30_000):
        assert pruned({"kernel": jnp.full(size, 0.1)})[0] == {"kernel": 0}


@pytest.mark.full
@pytest.mark.parametrize("norms", [HALF, ONE, (0.8, 1.0), (1.0, 1.8)])
@pytest.mark.parametrize("scope", quick([{}, {"together": True}]))
def test_of_millions_as_many_are_kept_as_the_bound_asks_for(norms, scope):
    """As float64 counts them: float32 would be off by some twenty."""
    (p, q), w = norms, np.random.default_rng(0).standard_normal(2_000_000, np.float32)
    x = np.abs(w.astype(np.float64))
    bound = (x**p).sum() ** (q / (q - p)) / (x**q).sum() ** (p / (q - p))
    count, _ = pruned({"kernel": jnp.asarray(w)}, p=p, q=q, **scope)
    off = abs(2_000_000 - count["kernel"] - np.ceil(bound))
    assert off <= (1 if norms == (1.0, 1.8) else 0)  # p / (q - p) is 1, 1, 4, and 1.25


def test_the_smallest_go_and_the_higher_index_first():
    w = jnp.array([3.0, 0.01, 0.01, 3.0, 0.01, 3.0, 3.0, 3.0, 3.0])
    count, masks = pruned({"kernel": w}, p=1, q=2)
    assert count["kernel"] == 2  # of three that are equal: 18.03^2 / 54.0003 = 6.02, 7 are kept
    np.testing.assert_array_equal(~masks["kernel"], np.isin(np.arange(9), [2, 4]))


@pytest.mark.full
def test_beta_is_the_most_and_gamma_scales():
    one = {"kernel": jnp.zeros(10).at[0].set(1.0)}  # m = 1 of 10
    assert pruned(one)[0]["kernel"] == 9
    assert pruned(one, beta=0.35)[0]["kernel"] == 3
    few = {"kernel": W}  # (1, 2): d - m = 3
    assert [pruned(few, p=1, q=2, gamma=g)[0]["kernel"] for g in (0.5, 1, 1.5, 2, 9)] == [
        1, 3, 4, 6, 7,
    ]  # fmt: skip


def test_the_larger_eta_the_fewer_must_be_kept():
    counts = [pruned({"kernel": W}, p=1, q=2, eta=eta)[0]["kernel"] for eta in (0.0, 0.3, 1.0)]
    assert counts == [3, 5, 6]  # ceil of 4.8677, 2.8803, 1.2169


@pytest.mark.full
def test_scopes_decide_each_for_themselves():
    params = {
        "even": jnp.array([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]),
        "odd": jnp.array([[9.0, 9.0], [0.01, 9.0], [0.01, 9.0]]),
    }
    count, masks = pruned(params, p=1, q=2, axis=-1)
    assert count == {"even": 0, "odd": 1}  # ceil(9.02^2 / 81.0002) = 2 of the first neuron
    assert not masks["odd"][2, 0]
    assert pruned(params, p=1, q=2)[0] == {"even": 0, "odd": 1}
    count, _ = pruned(params, p=1, q=2, together=True)
    assert count == {"even": 4, "odd": 2}  # 45.02^2 / 339.0002 = 5.98 of 12: 6 are kept


@pytest.mark.full
def test_what_is_pruned_stays_so_and_does_not_count():
    transform = jp.sap(p=1, q=2, prunable=lambda p: p)
    held = transform.init({"kernel": W})._replace(masks={"kernel": jnp.abs(W) > 0.09})
    (mask,) = transform.update(held, {"kernel": W}).masks.values()
    assert not (mask & (jnp.abs(W) <= 0.09)).any()
    (alone,) = pruned({"kernel": W[jnp.abs(W) > 0.09]}, p=1, q=2)[0].values()
    assert int(mask.sum()) == 5 - alone


# --- laws ----------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize("scope", quick([{"axis": -1}, {}, {"together": True}]))
def test_jit_and_vmap_change_nothing(scope):
    transform = jp.sap(**scope)
    stack = {"a": jax.random.normal(jax.random.key(0), (3, 5, 7)), "bias": jnp.ones((3, 7))}

    def masks(params):
        return transform.update(transform.init(params), params).masks

    one_by_one = [jax.jit(masks)(jax.tree.map(lambda x, i=i: x[i], stack)) for i in range(3)]
    looped = jax.tree.map(lambda *m: jnp.stack(m), *one_by_one)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(jax.vmap(masks))(stack), looped)
    first = jax.tree.map(lambda x: x[0], (stack, looped))
    jax.tree.map(np.testing.assert_array_equal, masks(first[0]), first[1])
    assert looped["bias"] is None and not looped["a"].all()


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("norms", [(1, 1), (0, 2), (0.5, 0.9), (2, 3)])
def test_norms_out_of_range(norms):
    with pytest.raises(ValueError, match=r"0 < p <= 1 <= q and p < q; got p="):
        jp.tickets.pq_index(W, *norms)
    with pytest.raises(ValueError, match=r"0 < p <= 1 <= q and p < q; got p="):
        jp.sap(*norms)


@pytest.mark.parametrize("bad", [{"beta": 1.1}, {"gamma": -1}, {"eta": -1}])
def test_other_arguments_out_of_range(bad):
    with pytest.raises(ValueError, match=r"eta > -1, gamma >= 0 and beta in \[0, 1\]"):
        jp.sap(**bad)


def test_one_scope_at_a_time():
    with pytest.raises(ValueError, match="not both"):
        jp.sap(axis=-1, together=True)


def test_no_such_axis():
    with pytest.raises(ValueError, match=r"'a' of shape \(2, 2\) has no axis 2"):
        pruned({"a": jnp.ones((2, 2))}, axis=2)
