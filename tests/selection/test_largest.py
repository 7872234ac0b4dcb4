"""Exact ranks, against a stable sort."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from jaxprune.exact import wide
from jaxprune.selection.largest import largest

INF, NAN = np.inf, np.nan


def of_one(x, k):
    """Mask of the k largest of one array."""
    return largest([x], [k])[0]


def by_sorting(x, k):
    """What `of_one` must give, by a stable sort in numpy."""
    values = np.asarray(x).astype(np.float32)
    values = np.where(np.isnan(values), INF, values)
    order = np.argsort(-values.reshape(-1), kind="stable")
    mask = np.zeros(values.size, bool)
    mask[order[:k]] = True
    return mask.reshape(values.shape)


def all_together_by_sorting(leaves, k):
    """What `largest(leaves, k, together=True)` must give, by a stable sort in numpy."""
    flat = np.concatenate([np.asarray(x, np.float32).reshape(-1) for x in leaves])
    mask, masks = by_sorting(flat, k), []
    for x in leaves:
        own, mask = np.split(mask, [x.size])
        masks.append(own.reshape(x.shape))
    return masks


# --- the largest of one array --------------------------------------------------------------------


def test_every_array_of_five_from_seven_values_and_every_k():
    # ties, infinities of both signs, nan, both zeros: 7**5 arrays x 6 counts, all of them
    alphabet = np.array([-INF, -1.5, -0.0, 0.0, 2.0, INF, NAN], np.float32)
    arrays = alphabet[np.indices((7,) * 5).reshape(5, -1).T]
    select = jax.jit(jax.vmap(jax.vmap(of_one, (None, 0)), (0, None)))
    masks = np.asarray(select(arrays, jnp.arange(6)))  # (array, k, 5)

    finite = np.where(np.isnan(arrays), INF, arrays)
    order = np.argsort(-finite, axis=1, kind="stable")
    rank = np.argsort(order, axis=1)  # of each entry, 0 is the largest
    np.testing.assert_array_equal(masks, rank[:, None, :] < np.arange(6)[:, None])


@pytest.mark.parametrize("shape", [(), (7,), (3, 4), (1, 1, 5), (2, 1, 2, 3)])
def test_every_k_of_every_shape(shape):
    size = int(np.prod(shape))
    rng = np.random.default_rng(size)
    for x in (rng.normal(size=shape), np.zeros(shape), rng.integers(-2, 3, shape)):
        x = jnp.asarray(x, jnp.float32)
        for k in range(size + 1):
            mask = of_one(x, k)
            assert mask.shape == shape and mask.dtype == bool and int(mask.sum()) == k
            np.testing.assert_array_equal(mask, by_sorting(x, k))


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "int32", "int8", "uint8", "bool"]
)
def test_every_dtype(dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, 9 if dtype != "bool" else 2, (40, 50))).astype(dtype)
    for k in (0, 1, 777, 1999, 2000):
        np.testing.assert_array_equal(of_one(x, k), by_sorting(x, k))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_floats_rank_by_all_their_bits(dtype):
    x = jax.random.normal(jax.random.key(0), (40, 50), dtype)
    for k in (1, 777, 1999):
        np.testing.assert_array_equal(of_one(x, k), by_sorting(x, k))


def test_a_large_array_of_close_values():
    # neighbors in float32, so that the bracket must close to the last bit
    bits = np.float32(1.0).view(np.int32) + np.random.default_rng(0).integers(0, 300, 100_000)
    x = bits.astype(np.int32).view(np.float32).reshape(250, 400)
    for k in (1, 12_345, 50_000, 99_999):
        np.testing.assert_array_equal(of_one(jnp.asarray(x), k), by_sorting(x, k))


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -INF, INF, NAN, 1e-40, -3.4e38])
def test_among_equals_the_lower_index_is_kept(value):
    x = jnp.full((30, 40), value, jnp.float32)
    for k in (0, 1, 599, 1199, 1200):
        mask = np.asarray(of_one(x, k)).reshape(-1)
        assert mask[:k].all() and not mask[k:].any()


def test_both_zeros_are_equal():
    x = jnp.array([-0.0, 0.0, -0.0, 0.0, -1.0])
    assert of_one(x, 3).tolist() == [True, True, True, False, False]


def test_nan_counts_as_infinity_and_is_kept():
    x = jnp.array([1.0, NAN, INF, -NAN, 5.0])
    assert of_one(x, 3).tolist() == [False, True, True, True, False]
    assert of_one(x, 2).tolist() == [False, True, True, False, False]
    assert of_one(x, 4).tolist() == [False, True, True, True, True]


def test_denormals_keep_the_count_and_lie_between_the_normal_numbers():
    # XLA's CPU backend reads denormals as zero, others do not: both orders are right
    x = np.array([1e-40, -1e-40, 0.0, 3e-39, 1e-38, -2e-39, 2e-38, -2e-38, -0.0], np.float32)
    flushed = np.where(np.abs(x) < np.finfo(np.float32).tiny, 0, x).astype(np.float32)
    for k in range(x.size + 1):
        mask = np.asarray(of_one(jnp.asarray(x), k))
        assert mask.sum() == k
        assert any((mask == by_sorting(order, k)).all() for order in (x, flushed))


def test_the_smallest_normal_numbers_are_told_apart():
    tiny = np.finfo(np.float32).tiny
    x = jnp.array([tiny, 2 * tiny, -tiny, 0.0, -2 * tiny])
    assert of_one(x, 1).tolist() == [False, True, False, False, False]
    assert of_one(x, 3).tolist() == [True, True, False, True, False]
    assert of_one(x, 4).tolist() == [True, True, True, True, False]


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0, 4)])
def test_an_empty_leaf_has_an_empty_mask(shape):
    mask = of_one(jnp.zeros(shape), 0)
    assert mask.shape == shape and mask.dtype == bool


def test_k_may_be_traced_and_jit_equals_eager():
    x = jax.random.normal(jax.random.key(0), (8, 9)).round(1)
    select = jax.jit(of_one)
    for k in (0, 1, 30, 71, 72):
        eager = of_one(x, k)
        np.testing.assert_array_equal(select(x, jnp.int32(k)), eager)
        np.testing.assert_array_equal(eager, by_sorting(x, k))


def test_vmap_equals_loop():
    x = jax.random.normal(jax.random.key(0), (5, 4, 6)).round(1).at[2].set(0.0)
    ks = jnp.array([0, 3, 11, 24, 7])
    lanes = jax.jit(jax.vmap(of_one))(x, ks)
    loop = jax.jit(of_one)
    for lane, own, k in zip(lanes, x, ks, strict=True):
        np.testing.assert_array_equal(lane, loop(own, k))
        np.testing.assert_array_equal(lane, by_sorting(own, int(k)))


# --- the largest of several ----------------------------------------------------------------------


def test_each_leaf_by_itself_equals_one_call_a_leaf():
    rng = np.random.default_rng(0)
    shapes = [(3, 5), (0, 2), (7,), (), (2, 2, 2)]
    leaves = [jnp.asarray(rng.integers(-3, 4, s), jnp.float32) for s in shapes]
    for ks in ([0] * 5, [15, 0, 7, 1, 8], [4, 0, 3, 0, 7]):
        masks = largest(leaves, ks)
        assert [int(m.sum()) for m in masks] == ks
        for mask, leaf, k in zip(masks, leaves, ks, strict=True):
            assert mask.shape == leaf.shape
            np.testing.assert_array_equal(mask, by_sorting(leaf, k))


def test_all_together_every_tree_of_four_values_and_every_k():
    alphabet = np.array([-INF, 0.0, 1.0, NAN], np.float32)
    arrays = alphabet[np.indices((4,) * 5).reshape(5, -1).T]  # (1024, 5)
    leaves = [arrays[:, :2], arrays[:, :0], arrays[:, 2:].reshape(-1, 1, 3)]
    select = jax.vmap(
        jax.vmap(lambda tree, k: largest(tree, k, together=True), (None, 0)), (0, None)
    )
    masks = jax.jit(select)(leaves, jnp.arange(6))
    together = np.concatenate([np.asarray(m).reshape(1024, 6, -1) for m in masks], -1)

    finite = np.where(np.isnan(arrays), INF, arrays)
    rank = np.argsort(np.argsort(-finite, axis=1, kind="stable"), axis=1)
    np.testing.assert_array_equal(together, rank[:, None, :] < np.arange(6)[:, None])


def test_all_together_the_counts_sum_exactly():
    keys = list(jax.random.split(jax.random.key(0), 3))
    shapes = [(50, 7), (3,), (4, 5, 6)]
    leaves = [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]
    leaves[1] = leaves[1].astype(jnp.bfloat16)
    total = sum(x.size for x in leaves)
    for k in (0, 1, 47, total // 2, total - 1, total):
        masks = largest(leaves, k, together=True)
        assert sum(int(mask.sum()) for mask in masks) == k
        for mask, expected in zip(masks, all_together_by_sorting(leaves, k), strict=True):
            np.testing.assert_array_equal(mask, expected)


def test_all_together_among_equals_the_earlier_leaf_is_kept():
    leaves = [jnp.ones((2, 2)), jnp.ones(3), jnp.ones(2)]
    masks = largest(leaves, 5, together=True)
    assert [mask.tolist() for mask in masks] == [
        [[True, True], [True, True]],
        [True, False, False],
        [False, False],
    ]


def test_nothing_but_empty_leaves():
    masks = largest([jnp.zeros((0, 2)), jnp.zeros(0)], 0, together=True)
    assert [mask.shape for mask in masks] == [(0, 2), (0,)]
    assert largest([], 0, together=True) == []


@pytest.mark.parametrize("together", [False, True])
def test_where_jax_counts_in_64_bits(together):
    with jax.enable_x64(True):
        masks = largest([jnp.arange(5.0), jnp.arange(3.0)], 4 if together else [2, 2], together)
    assert [int(np.sum(mask)) for mask in masks] == ([3, 1] if together else [2, 2])


def test_billions_of_weights_are_ranked_together():
    """From shapes: there is not the memory to run it; `test_words_that_carry` runs the sums."""
    leaves = {name: jax.ShapeDtypeStruct((2**15, 2**15), jnp.bfloat16) for name in "abcdef"}
    for sparsity in (0.9, jnp.float32(0.9)):
        ask = lambda scores, s=sparsity: jp.select(scores, jp.global_threshold, s)
        assert jax.eval_shape(ask, leaves)["f"].shape == (2**15, 2**15)


def test_words_that_carry(monkeypatch):
    """Words of three bits: the sums of a few weights carry as those of billions do."""
    rng = np.random.default_rng(0)
    leaves = [rng.integers(0, top, n).astype(np.float32) for top, n in ((2, 40), (3, 9), (50, 33))]
    with monkeypatch.context() as patch:
        patch.setattr(wide, "_BITS", 3)
        patch.setattr(wide, "_LOW", 7)
        masks = jax.jit(jax.vmap(lambda k: largest(leaves, k, together=True)))(jnp.arange(83))
    for k in range(83):
        wanted = all_together_by_sorting(leaves, k)
        jax.tree.map(np.testing.assert_array_equal, [m[k] for m in masks], wanted)


def test_more_than_int32_can_count_is_refused():
    leaves = [jax.ShapeDtypeStruct((2**15, 2**15), jnp.float32)] * 2
    with pytest.raises(ValueError, match="counts in int32") as error:
        jax.eval_shape(lambda k, *xs: largest(xs, k, together=True), jnp.int32(5), *leaves)
    assert "got 2,147,483,648" in str(error.value)
    assert "layer-wise allocation such as erk or uniform" in str(error.value)
    for sparsity in (0.5, jnp.float32(0.5)):
        with pytest.raises(ValueError, match="got a leaf of 2,147,483,648"):
            jax.eval_shape(
                lambda x, s=sparsity: jp.unstructured(x, s),
                jax.ShapeDtypeStruct((2, 2**15, 2**15), jnp.float32),
            )


# --- sharding ------------------------------------------------------------------------------------


@pytest.fixture
def weights():
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = {"rows": (64, 16), "columns": (8, 32), "alone": (5, 7)}
    return {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items(), strict=True)}


def sharded(weights, kind):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(kind,))
    specs = {"rows": P("d"), "columns": P(None, "d"), "alone": P()}
    return jax.device_put(weights, {n: NamedSharding(mesh, s) for n, s in specs.items()})


def select_global(params):
    return jp.select(jp.magnitude(jp.kernels(params)), jp.global_threshold, 0.9)


def select_each(params):
    return jp.select(jp.magnitude(jp.kernels(params)), jp.uniform, 0.9)


@pytest.mark.full
@pytest.mark.parametrize(
    ("select", "kind"),
    [
        (jax.jit(select_global), AxisType.Auto),
        (jax.jit(select_global), AxisType.Explicit),
        (select_each, AxisType.Explicit),
    ],
    ids=["global", "global explicit", "each eager explicit"],
)
def test_sharding_changes_no_mask_and_masks_take_it(select, kind, weights):
    assert jax.device_count() == 8
    for w in (weights, jax.tree.map(lambda x: x.round(), weights)):  # distinct; many ties
        params = sharded(w, kind)
        for name, mask in select(params).items():
            np.testing.assert_array_equal(mask, select(w)[name])
            assert mask.sharding.is_equivalent_to(params[name].sharding, 2)


def collectives(f, params):
    """(operation, elements of its result) of all communication in the compiled f."""
    text = jax.jit(f).lower(params).compile().as_text()
    found = re.findall(
        r"= \(?\w+\[([\d,]*)\][^\n]*? (all-reduce|all-gather|all-to-all|collective-permute|"
        r"reduce-scatter|collective-broadcast)(?:-start)?\(",
        text,
    )
    return [(op, int(np.prod([int(n) for n in dims.split(",") if n]))) for dims, op in found], text


def test_sharded_selection_moves_counts_only(weights):
    found, text = collectives(select_global, sharded(weights, AxisType.Auto))
    assert found and max(elements for _, elements in found) <= 32
    assert not re.search(r" (sort|gather)\(", text)


@pytest.mark.xfail(
    strict=True,
    reason="XLA partitions a variadic reduction by all-gathers of its partial sums: "
    "devices x 1 int32 for each threshold, leaf and pass, in place of one all-reduce",
)
def test_sharded_selection_needs_only_all_reduce(weights):
    found, _ = collectives(select_global, sharded(weights, AxisType.Auto))
    assert {op for op, _ in found} == {"all-reduce"}


def test_the_collectives_of_a_sort_are_seen(weights):
    # so that the two tests above can fail
    found, text = collectives(lambda p: jp.lamp()(p), sharded(weights, AxisType.Auto))
    assert max(elements for _, elements in found) >= 1024 and re.search(r" (sort|gather)\(", text)


# --- 64 bits -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scale", [lambda x: x, lambda x: 1 + 1e-12 * x, lambda x: 1e-50 * x, lambda x: 1e50 * x]
)
def test_float64_are_ranked_as_such(scale):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        w = scale(rng.permutation(np.arange(-30.0, 70.0)))
        w[5] = w[50] = w[7]
        leaves = [jnp.asarray(w[:40]), jnp.asarray(w[40:].astype(np.float64))]
        for k in (0, 1, 37, 99, 100):
            masks = largest(leaves, k, together=True)
            order = np.argsort(-w, kind="stable")  # ties to the earlier leaf, and the lower index
            expected = np.zeros(100, bool)
            expected[order[:k]] = True
            np.testing.assert_array_equal(np.concatenate(masks), expected)


def test_one_leaf_of_float64_makes_all_be_ranked_so():
    with jax.enable_x64(True):
        leaves = [jnp.ones(3, jnp.float32), jnp.asarray([1 + 1e-12, 1 - 1e-12, np.nan])]
        masks = largest(leaves, 4, together=True)
        assert [m.tolist() for m in masks] == [[True, True, False], [True, False, True]]


@pytest.mark.full
@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.bfloat16, jnp.float16])
def test_narrow_floats_are_pruned_gradually(dtype):
    """Some of float8 have no infinity: what is pruned must rank lowest all the same."""
    w = {"kernel": jax.random.normal(jax.random.key(0), (16, 16)).astype(dtype)}
    for pattern in (jp.unstructured, jp.block(2, 2)):
        gmp = jp.prune(jp.magnitude, jp.uniform, lambda s: 0.25 * (jnp.minimum(s, 2) + 1), pattern)
        state = gmp.init(w)
        for step in range(3):
            state = gmp.update(state, w, step=step, grads=None, opt_state=None)
            assert float(jp.sparsity(state.masks)) == 0.25 * (step + 1)
