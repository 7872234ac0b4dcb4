"""Which entries of a leaf: patterns by eye, `select` end to end, and what it refuses."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from jaxprune.selection.transposable import _every_mask, _filled, _greedy
from tests.quick import quick

INF, NAN = jnp.inf, jnp.nan


def kept(mask):
    """A mask as rows of 0 and 1."""
    return np.asarray(mask).astype(int).tolist()


def masked(pattern, scores, sparsity):
    """The mask of one leaf; jitted, which compiles once and not operation by operation."""
    return jax.jit(lambda s: pattern(s, sparsity))(scores)


# --- unstructured --------------------------------------------------------------------------------


def test_the_eight_weights_of_the_card():
    w = jnp.array([0.5, -0.1, 0.3, -0.2, 0.05, 0.4, -0.35, 0.15])
    masks = jp.select({"layer": jnp.abs(w)}, jp.uniform, 0.5)
    assert kept(masks["layer"]) == [1, 0, 1, 0, 0, 1, 1, 0]
    assert masks["layer"].dtype == bool


def test_unstructured_prunes_an_exact_number():
    s = jnp.arange(10.0)
    for sparsity, zeros in ((0.0, 0), (0.25, 2), (0.35, 4), (0.5, 5), (0.9, 9), (3, 3), (0, 0)):
        mask = jp.unstructured(s, sparsity)
        assert int((~mask).sum()) == zeros
        assert mask.tolist() == [i >= zeros for i in range(10)]


def test_unstructured_traced_equals_static():
    s = jax.random.normal(jax.random.key(0), (7, 9)).round(1)
    traced = jax.jit(jp.unstructured)
    for sparsity in (0.0, 0.1, 0.5, 0.95):
        np.testing.assert_array_equal(traced(s, sparsity), jp.unstructured(s, sparsity))
    np.testing.assert_array_equal(traced(s, jnp.int32(20)), jp.unstructured(s, 20))


# --- n:m -----------------------------------------------------------------------------------------

GRID = jnp.array(
    [
        [9.0, 1.0, 5.0],
        [8.0, 2.0, 5.0],
        [7.0, 3.0, 5.0],
        [6.0, 4.0, 5.0],
    ]
)


def test_nm_along_the_input_features():
    assert kept(masked(jp.nm(2, 4), GRID, 0.5)) == [[1, 0, 1], [1, 0, 1], [0, 1, 0], [0, 1, 0]]


def test_nm_of_the_card():
    # card 7, groups along the last axis
    w = jnp.array([[0.9, -0.2, 0.3, -0.8], [0.1, 0.4, -0.5, 0.2]])
    assert kept(masked(jp.nm(2, 4, axis=-1), jnp.abs(w), 0.5)) == [[1, 0, 0, 1], [0, 1, 1, 0]]


def test_nm_along_the_first_axis():
    s = jnp.arange(8.0).reshape(4, 1, 2)
    assert kept(masked(jp.nm(1, 2, axis=0), s, 0.5)) == [[[0, 0]], [[1, 1]], [[0, 0]], [[1, 1]]]


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (3, 4), (4, 8), (1, 1), (4, 4)])
def test_nm_keeps_the_n_largest_of_every_m_along_any_axis(n, m):
    s = jax.random.normal(jax.random.key(0), (8, 16, 8)).round(1)  # with ties
    axes = (-2, -1, 0)
    masks = jax.jit(lambda s: [jp.nm(n, m, axis)(s, 1 - n / m) for axis in axes])(s)
    for axis, mask in zip(axes, masks, strict=True):
        scores = np.moveaxis(np.asarray(s), axis, -1).reshape(-1, m)
        groups = np.moveaxis(np.asarray(mask), axis, -1).reshape(-1, m)
        rank = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1)
        np.testing.assert_array_equal(groups, rank < n)


def test_nm_never_groups_across_heads():
    heads = jnp.ones((8, 4, 2))  # of flax: (inputs, heads, features)
    with pytest.raises(ValueError, match=r"shape \(8, 4, 2\) may have heads.*nm\(2, 4, axis=0\)"):
        jp.nm(2, 4)(heads, 0.5)
    mask = jp.select({"query": {"kernel": heads}}, jp.uniform, 0.5, jp.nm(2, 4))
    along_inputs = jp.nm(2, 4, axis=0)(heads, 0.5)
    np.testing.assert_array_equal(mask["query"]["kernel"], along_inputs)


def test_nm_among_equals_the_lower_index_is_kept():
    assert kept(masked(jp.nm(2, 4), jnp.zeros((8, 1)), 0.5)) == [[1], [1], [0], [0]] * 2
    assert kept(masked(jp.nm(1, 2, -1), jnp.full((1, 4), -INF), 0.5)) == [[1, 0, 1, 0]]


def test_nm_with_nan_still_keeps_n():
    # nan ranks as +inf, as in the other patterns
    s = jnp.array([[NAN, 1.0, NAN, 2.0], [1.0, NAN, 3.0, 2.0], [NAN, NAN, NAN, INF]])
    assert kept(masked(jp.nm(2, 4, -1), s, 0.5)) == [[1, 0, 1, 0], [0, 1, 1, 0], [1, 1, 0, 0]]


def test_nm_under_jit_and_vmap():
    s = jax.random.normal(jax.random.key(0), (3, 8, 5))
    lanes = jax.jit(jax.vmap(lambda s: jp.nm(2, 4)(s, 0.5)))(s)
    for lane, own in zip(lanes, s, strict=True):
        np.testing.assert_array_equal(lane, masked(jp.nm(2, 4), own, 0.5))


def test_transposable_of_the_card():
    w = jnp.array([[0.9, 0.8, 0.1, 0.2], [0.7, 0.6, 0.3, 0.5], [0.2, 0.4, 0.9, 0.1]])
    w = jnp.concatenate([w, jnp.array([[0.3, 0.1, 0.6, 0.7]])])
    mask = masked(jp.nm(2, 4, transposable=True), w, 0.5)
    assert kept(mask) == [[1, 1, 0, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert float((w * mask).sum()) == pytest.approx(5.5)
    assert len(_every_mask(2, 4)) == 90
    without = masked(jp.nm(2, 4, transposable=True), w.at[0, 0].set(-INF), 0.5)
    assert kept(without) == [[0, 1, 0, 1], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1]]
    greedy = _greedy(w, 2)
    assert float((w * _filled(w, greedy, 2)).sum()) >= float((w * greedy).sum())
    assert float((w * greedy).sum()) == pytest.approx(5.3)


@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (1, 8), (4, 8)])
def test_transposable_keeps_n_along_inputs_and_outputs(n, m):
    s = jax.random.normal(jax.random.key(1), (4 * m, 3 * m)).round(1).at[0].set(-INF)
    mask = np.asarray(masked(jp.nm(n, m, transposable=True), s.at[1, 1].set(NAN), 1 - n / m))
    blocks = mask.reshape(4, m, 3, m)
    assert (blocks.sum(1) == n).all() and (blocks.sum(3) == n).all()


def test_transposable_of_what_has_no_blocks():
    with pytest.raises(ValueError, match="leave out axis=0"):
        jp.nm(2, 4, 0, transposable=True)
    with pytest.raises(ValueError, match=r"needs axis -1 divisible by 4; got shape \(8, 6\)"):
        jp.nm(2, 4, transposable=True)(jnp.ones((8, 6)), 0.5)
    with pytest.raises(ValueError, match="may have heads"):
        jp.nm(2, 4, transposable=True)(jnp.ones((8, 4, 4)), 0.5)


def test_nm_accepts_its_sparsity_in_every_form():
    s = jnp.ones((4, 6))
    for sparsity in (0.5, np.float32(0.5), jnp.float32(0.5), 12, jnp.int32(12)):  # 12 of 24
        assert int(jp.nm(2, 4)(s, sparsity).sum()) == 12
    assert int(masked(jp.nm(2, 3, -1), s, 1 / 3).sum()) == 16


def test_nm_that_does_not_divide_names_the_leaf():
    scores = {"Dense_0": {"kernel": jnp.ones((30, 64))}}
    with pytest.raises(ValueError) as error:
        jp.select(scores, jp.uniform, 0.5, jp.nm(2, 4))
    assert str(error.value) == (
        "'Dense_0/kernel': nm(2, 4) needs axis -2 divisible by 4; got shape (30, 64). "
        "Exclude the leaf with prunable=..., or choose another axis."
    )


def test_nm_without_the_axis():
    with pytest.raises(ValueError, match=r"'a': nm\(2, 4, axis=-2\) has no such axis") as error:
        jp.select({"a": jnp.ones(8)}, jp.uniform, 0.5, jp.nm(2, 4))
    assert "shape (8,)" in str(error.value)


@pytest.mark.parametrize(("n", "m"), [(5, 4), (0, 4), (-1, 4), (2.0, 4), (2, None)])
def test_nm_of_no_pattern(n, m):
    with pytest.raises(ValueError, match="1 <= n <= m") as error:
        jp.nm(n, m)
    assert f"got nm({n}, {m})" in str(error.value)


def test_nm_and_another_sparsity():
    with pytest.raises(ValueError, match=r"'a': nm\(2, 4\) prunes exactly 0.5") as error:
        jp.select({"a": jnp.ones((4, 4))}, jp.uniform, 0.9, jp.nm(2, 4))
    assert "got sparsity 0.9" in str(error.value)
    assert "Use uniform and sparsity=0.5, or another pattern." in str(error.value)


def test_nm_and_erk_can_not_mean_the_same():
    scores = {"a": jnp.ones((8, 8)), "b": jnp.ones((80, 80))}
    for sparsity in (0.9, 0.5):  # the right sparsity on the whole, but not of each leaf
        with pytest.raises(ValueError, match=r"nm\(2, 4\) prunes exactly 0.5 of every leaf"):
            jp.select(scores, jp.erk, sparsity, jp.nm(2, 4))


def test_nm_and_a_traced_sparsity():
    with pytest.raises(ValueError, match="got a sparsity that is traced") as error:
        jax.jit(lambda s: jp.select({"a": jnp.ones((4, 4))}, jp.uniform, s, jp.nm(2, 4)))(0.5)
    assert "Use uniform and sparsity=0.5; every(..., start=...) says when." in str(error.value)


def test_nm_and_global_threshold_under_jit():
    with pytest.raises(ValueError, match=r"traced \(a schedule, global_threshold"):
        jax.jit(lambda s: jp.select(s, jp.global_threshold, 0.5, jp.nm(2, 4)))(
            {"a": jnp.ones((4, 4))}
        )


# --- blocks --------------------------------------------------------------------------------------


def test_block_keeps_the_largest_entries_or_the_largest_means():
    s = jnp.array([[1.0, 1, 9, 0], [1, 1, 0, 0], [4, 4, 2, 2], [4, 4, 2, 3]])
    # largest 1, 9; 4, 3, means 1, 2.25; 4, 2.25
    for by in (jnp.max, jnp.mean):
        three = [[0, 0, 1, 1], [0, 0, 1, 1], [1] * 4, [1] * 4]
        assert kept(masked(jp.block(2, 2, by), s, 0.25)) == three
        two = [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
        assert kept(masked(jp.block(2, 2, by), s, 0.5)) == two
    top = [[0, 0, 1, 1], [0, 0, 1, 1], [0] * 4, [0] * 4]
    assert kept(masked(jp.block(2, 2), s, 0.75)) == top
    assert kept(masked(jp.block(2, 2, jnp.mean), s, 0.75)) == [
        [0] * 4,
        [0] * 4,
        [1, 1, 0, 0],
        [1, 1, 0, 0],
    ]
    # rows: the largest are 9, 1, 4, 4, the means 2.75, 0.5, 3, 3.25
    assert kept(masked(jp.block(1, 4), s, 0.5)) == [[1] * 4, [0] * 4, [1] * 4, [0] * 4]
    by_mean = jp.block(1, 4, jnp.mean)
    assert kept(masked(by_mean, s, 0.5)) == [[0] * 4, [0] * 4, [1] * 4, [1] * 4]


def test_block_by_another_worth():
    with pytest.raises(ValueError, match=r"by jnp.max or jnp.mean; got by=<.*min"):
        jp.block(2, 2, jnp.min)


@pytest.mark.parametrize("low", [0.0, -1.0])
@pytest.mark.parametrize("by", [jnp.max, jnp.mean])
def test_a_block_that_is_gone_goes_before_one_that_scores_nothing(by, low):
    # gone, worth `low`, worth 5: a mean of nothing is not 0
    s = jnp.array([[-INF, -INF, low, low, 5, 5]])
    assert kept(masked(jp.block(1, 2, by), s, 1 / 3)) == [[0, 0, 1, 1, 1, 1]]


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_a_channel_that_is_gone_goes_before_one_that_scores_nothing(low):
    s = jnp.array([[-INF, low, 5], [-INF, low, -INF]])
    assert kept(masked(jp.channel(), s, 1 / 3)) == [[0, 1, 1], [0, 1, 1]]


def test_block_that_does_not_divide_has_smaller_blocks_at_the_end():
    # 3 x 5 in blocks of 2 x 2: six blocks, of 4, 4, 2 and 2, 2, 1 entries
    s = jnp.zeros((3, 5)).at[2, 4].set(5.0).at[:2, 4].set(3.0)
    by_mean = jp.block(2, 2, jnp.mean)
    assert kept(masked(jp.block(2, 2), s - 9, 5 / 6)) == [[0] * 5, [0] * 5, [0, 0, 0, 0, 1]]
    assert kept(masked(by_mean, s, 5 / 6)) == [[0] * 5, [0] * 5, [0, 0, 0, 0, 1]]
    assert kept(masked(by_mean, s, 4 / 6)) == [[0, 0, 0, 0, 1]] * 3
    assert kept(masked(by_mean, s, 3 / 6)) == [[1, 1, 0, 0, 1]] * 2 + [[0, 0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("shape", "h", "w"),
    # all in a grid of 2 x 3 blocks, so that one search is compiled
    [((4, 6), 2, 2), ((5, 7), 3, 3), ((7, 5), 4, 2), ((2, 9), 1, 3), ((3, 3), 2, 1)],
)
def test_block_counts_blocks(shape, h, w):
    s = jax.random.uniform(jax.random.key(0), shape)
    mask = np.asarray(masked(jp.block(h, w), s, 0.5))
    check_blocks(mask, shape, h, w, pruned=3)


def test_block_larger_than_the_leaf_is_the_leaf():
    mask = masked(jp.block(10, 10), jnp.ones((2, 3, 5)), 0.5)  # two blocks of 3 x 5
    assert kept(mask) == [[[1] * 5] * 3, [[0] * 5] * 3]


def test_block_of_a_convolution_has_blocks_of_its_last_axes():
    s = jax.random.uniform(jax.random.key(0), (2, 3, 5, 7))
    mask = np.asarray(masked(jp.block(2, 4), s, 0.75))  # 2 x 3 x 3 x 2 blocks
    check_blocks(mask, s.shape, 2, 4, pruned=27)


def check_blocks(mask, shape, h, w, pruned):
    assert mask.shape == shape
    corners = mask[..., ::h, ::w]  # one entry of each block
    assert (~corners).sum() == pruned
    rows, columns = np.arange(shape[-2]) // h, np.arange(shape[-1]) // w
    np.testing.assert_array_equal(mask, corners[..., rows[:, None], columns[None]])


def test_block_of_a_count_of_entries():
    # what global_threshold hands out: 10 of 16 entries are 2.5 of 4 blocks, to even 2
    s = jnp.arange(16.0).reshape(4, 4)
    assert int((~masked(jp.block(2, 2), s, 10)).sum()) == 8
    traced = jax.jit(jp.block(2, 2))
    assert int((~traced(s, 10)).sum()) == 8 and int((~traced(s, 12)).sum()) == 12
    # 11 are 2.75 blocks, to the nearest 3
    assert int((~masked(jp.block(2, 2), s, 11)).sum()) == int((~traced(s, 11)).sum()) == 12


def test_block_needs_two_axes():
    with pytest.raises(ValueError, match=r"'a': block\(2, 2\) needs two axes or more") as error:
        jp.select({"a": jnp.ones(8)}, jp.uniform, 0.5, jp.block(2, 2))
    assert "got shape (8,)" in str(error.value)


@pytest.mark.parametrize(("h", "w"), [(0, 2), (2, -1), (2.0, 2), (None, 1)])
def test_block_of_no_size(h, w):
    with pytest.raises(ValueError, match="needs positive integers") as error:
        jp.block(h, w)
    assert f"got block({h}, {w})" in str(error.value)


def test_block_ranks_what_is_left_of_a_pruned_block():
    # one entry of each block is pruned already, which scores -inf: the others still count
    s = jnp.array([[-INF, 1, -INF, 2], [1, 1, 2, 2], [-INF, 3, -INF, 9], [3, 3, 9, 9]])
    for by in (jnp.max, jnp.mean):
        last = [[0] * 4, [0] * 4, [0, 0, 1, 1], [0, 0, 1, 1]]
        assert kept(masked(jp.block(2, 2, by), s, 0.75)) == last


# --- channels ------------------------------------------------------------------------------------


def test_channel_keeps_the_largest_means():
    s = jnp.array(
        [[1.0, 5.0, 2.0], [1.0, 0.0, 4.0]]
    )  # means of columns 1, 2.5, 3; of rows 8/3, 5/3
    assert kept(masked(jp.channel(), s, 1 / 3)) == [[0, 1, 1], [0, 1, 1]]
    assert kept(masked(jp.channel(-1), s, 2 / 3)) == [[0, 0, 1], [0, 0, 1]]
    assert kept(masked(jp.channel(0), s, 0.5)) == [[1, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize("axis", [0, 1, 3, -1, -2, -4])
def test_channel_prunes_whole_slices(axis):
    s = jax.random.uniform(jax.random.key(0), (6, 6, 6, 6))
    mask = np.moveaxis(np.asarray(masked(jp.channel(axis), s, 0.5)), axis, 0).reshape(6, -1)
    assert (mask == mask[:, :1]).all()
    means = np.moveaxis(np.asarray(s), axis, 0).reshape(6, -1).mean(1)
    assert set(np.flatnonzero(mask[:, 0])) == set(np.argsort(means)[-3:])


def test_channel_of_a_vector():
    assert kept(masked(jp.channel(), jnp.array([3.0, 1.0, 2.0, 0.0]), 0.5)) == [1, 0, 1, 0]


def test_channel_without_the_axis():
    with pytest.raises(ValueError, match=r"'a': channel\(2\) has no such axis in shape \(4, 4\)"):
        jp.select({"a": jnp.ones((4, 4))}, jp.uniform, 0.5, jp.channel(2))


@pytest.mark.parametrize("axis", [1.0, "out"])
def test_channel_of_no_axis(axis):
    with pytest.raises(ValueError, match="needs an integer"):
        jp.channel(axis)


# --- kernels of attention ------------------------------------------------------------------------


def attention(seed=0):
    """The kernels of flax's attention with 4 heads of 2 features, as they are and as matrices."""
    keys = jax.random.split(jax.random.key(seed))
    query = jax.random.uniform(keys[0], (8, 4, 2))
    out = jax.random.uniform(keys[1], (4, 2, 6))
    whole = {"query": {"kernel": query}, "out": {"kernel": out}}
    return whole, {"a": query.reshape(8, 8), "b": out.reshape(8, 6)}


@pytest.mark.parametrize("pattern", [jp.nm(2, 4), jp.block(2, 4), jp.channel()])
def test_patterns_mean_inputs_and_outputs_also_in_attention(pattern):
    whole, matrices = attention()
    masks = jp.select(whole, jp.uniform, 0.5, pattern)
    wanted = jp.select(matrices, jp.uniform, 0.5, pattern)
    np.testing.assert_array_equal(masks["query"]["kernel"], wanted["a"].reshape(8, 4, 2))
    np.testing.assert_array_equal(masks["out"]["kernel"], wanted["b"].reshape(4, 2, 6))
    if "nm" in pattern.on_matrices:  # two of four consecutive inputs: by eye
        groups = np.asarray(masks["query"]["kernel"]).reshape(2, 4, 8).sum(1)
        np.testing.assert_array_equal(groups, 2)
        groups = np.asarray(masks["out"]["kernel"]).reshape(2, 4, 6).sum(1)
        np.testing.assert_array_equal(groups, 2)


def test_an_axis_that_is_named_is_that_of_the_leaf():
    whole, _ = attention()
    mask = jp.select(whole, jp.uniform, 0.5, jp.nm(1, 2, axis=-2))["query"]["kernel"]
    np.testing.assert_array_equal(mask.reshape(8, 2, 2, 2).sum(2), 1)


UNKNOWN = {
    "mixer/kernel": ((4, 4, 4), jp.Layout(inputs=2, outputs=(0, 1))),
    # of flax, fused query, key and value: no window by its name, or by its size
    "DenseGeneral_0/kernel": ((4, 3, 4, 4), jp.Layout(inputs=0, outputs=(1, 2, 3))),
    "mixer/w": ((32, 3, 4, 4), jp.Layout(inputs=0, outputs=(1, 2, 3))),
    # of equinox
    "mixer/weight": ((4, 8), jp.Layout(inputs=1, outputs=0)),
    "mixer/weight_ih": ((12, 8), jp.Layout(inputs=1, outputs=0)),
}


@pytest.mark.parametrize("leaf", quick(UNKNOWN))
@pytest.mark.parametrize("pattern", quick([jp.nm(2, 4), jp.block(2, 4), jp.channel()]))
def test_a_kernel_whose_inputs_can_not_be_known_is_named(pattern, leaf):
    shape, layout = UNKNOWN[leaf]
    parent, own = leaf.split("/")
    scores = {parent: {own: jnp.ones(shape)}}
    with pytest.raises(ValueError, match=f"needs to know which axes of '{leaf}'") as error:
        jp.select(scores, jp.uniform, 0.5, pattern)
    said = str(error.value)
    assert pattern.on_matrices in said and str(shape) in said
    assert f"layouts={{'{leaf}': jp.Layout(inputs=" in said
    prunable = jp.matching(layouts={leaf: layout})
    assert float(jp.sparsity(jp.select(prunable(scores), jp.uniform, 0.5, pattern))) == 0.5


def test_balanced_blocks_are_as_many_for_each_block_of_outputs():
    # blocks of 1 x 2: two inputs of four stay for each pair of outputs
    scores = jnp.array([[9.0, 0, 1, 1], [8, 0, 2, 0], [7, 0, 0, 3], [6, 0, 4, 0]])
    mask = kept(masked(jp.block(1, 2, balanced=True), scores, 0.5))
    assert mask == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    # 4 of 8 blocks by one threshold: all four of the first outputs
    mask = kept(masked(jp.block(1, 2), scores, 0.5))
    assert mask == [[1, 1, 0, 0]] * 4


@pytest.mark.parametrize("sparsity", [0.9, 58])  # 58 of 64 weights
def test_balanced_blocks_of_a_convolution_and_over_the_edge(sparsity):
    scores = jax.random.normal(jax.random.key(0), (2, 2, 4, 4))
    mask = np.asarray(jp.block(2, 2, balanced=True)(scores, sparsity))
    blocks = mask.reshape(2, 2, 2, 2, 2, 2).any((3, 5))
    np.testing.assert_array_equal(blocks.sum((0, 1, 2)), 1)  # 1 of 8: 0.9 of them is 7.2
    odd = np.asarray(jp.block(4, 4, balanced=True)(scores[0, 0], 0.0))
    assert odd.all()
    with pytest.raises(ValueError, match="balanced='yes'"):
        jp.block(2, 2, balanced="yes")


# --- select --------------------------------------------------------------------------------------


def test_select_keeps_tree_and_holes(params):
    masks = jp.select(jp.magnitude(jp.kernels(params)), jp.uniform, 0.75)
    assert jax.tree.map(lambda m: int(m.sum()), masks) == {
        "Dense_0": {"kernel": 8, "bias": None}, "Dense_1": {"kernel": 4, "bias": None}
    }  # fmt: skip


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9, 0.97])
def test_select_under_a_global_threshold_prunes_an_exact_number(params, sparsity):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the bias of two may go
        masks = jp.select(jp.magnitude(params), jp.global_threshold, sparsity)
    zeros = sum(int((~m).sum()) for m in jax.tree.leaves(masks))
    assert zeros == round(sparsity * 58)


@pytest.mark.parametrize(
    ("allocation", "pattern"),
    [
        (jp.erk, jp.unstructured),
        (jp.global_threshold, jp.unstructured),
    ],
    ids=["erk", "global"],
)
def test_select_jitted_equals_eager(params, allocation, pattern):
    select = lambda p: jp.select(jp.magnitude(jp.kernels(p)), allocation, 0.5, pattern)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(select)(params), select(params))


def test_select_by_an_allocation_and_a_pattern_of_ones_own():
    # they are given arrays, and may hand out counts
    def first_half(scores, sparsity):
        assert isinstance(scores["a"], jax.Array)
        return {"a": 1, "b": 0.5}

    def from_the_front(scores, sparsity):
        n = sparsity if isinstance(sparsity, int) else round(sparsity * scores.size)
        return jnp.arange(scores.size) >= n

    masks = jp.select({"a": jnp.ones(4), "b": jnp.ones(4)}, first_half, 0.5, from_the_front)
    assert kept(masks["a"]) == [0, 1, 1, 1] and kept(masks["b"]) == [0, 0, 1, 1]


def test_select_of_a_bare_array():
    assert kept(jp.select(jnp.array([3.0, 1.0, 2.0, 0.0]), jp.global_threshold, 0.5)) == [
        1,
        0,
        1,
        0,
    ]


def test_select_over_sparsities_by_vmap():
    s = jnp.arange(1.0, 21).reshape(4, 5)
    select = jax.jit(jax.vmap(lambda d: jp.select({"a": s}, jp.erk, d)))
    masks = select(jnp.array([0.0, 0.25, 0.5, 0.9]))
    assert (~masks["a"]).sum((1, 2)).tolist() == [0, 5, 10, 18]


# --- a layer that dies ---------------------------------------------------------------------------


def test_an_empty_layer_is_warned_of_by_its_path_at_the_users_line():
    scores = {"body": {"kernel": 9 + jnp.ones((2, 2))}, "head": {"kernel": jnp.ones((1, 2))}}
    for allocation, sparsity in (
        (jp.global_threshold, 1 / 3),
        (jp.per_layer({"head/*": 0.9}), 0.0),
    ):
        with pytest.warns(UserWarning, match="'head/kernel' keeps none of its weights") as record:
            jp.select(scores, allocation, sparsity)
        assert len(record) == 1 and record[0].filename == __file__
        assert "Lower the sparsity, exempt it with per_layer" in str(record[0].message)


def test_an_empty_layer_is_warned_of_with_every_pattern():
    with pytest.warns(UserWarning, match="'small' keeps none of its weights"):
        jp.select({"small": jnp.ones((1, 2))}, jp.uniform, 0.9, jp.channel())


def test_an_empty_layer_is_warned_of_under_jit_where_its_count_is_known():
    # 1.8 of 2 weights is both
    select = lambda s: jp.select(s, jp.uniform, 0.9)
    with pytest.warns(UserWarning, match="'small' keeps none of its weights") as record:
        jax.jit(select)({"small": jnp.ones((1, 2))})
    assert len(record) == 1 and record[0].filename == __file__


def test_an_empty_layer_is_not_known_under_jit_with_a_global_threshold():
    scores = {"big": 9 + jnp.ones((4, 4)), "small": jnp.ones((1, 2))}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masks = jax.jit(lambda s: jp.select(s, jp.global_threshold, 0.5))(scores)
    assert kept(masks["small"]) == [[0, 0]]


def test_no_warning_without_an_empty_layer():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jp.select({"a": jnp.ones((4, 5)), "empty": jnp.ones((0, 3))}, jp.uniform, 0.9)


# --- what select refuses -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sparsity", "kind", "fragment"),
    [
        (90, ValueError, "got 90. For 90% write 0.9."),
        (1.0, ValueError, "in [0, 1); got 1."),
        (-0.5, ValueError, "got -0.5."),
        (float("nan"), ValueError, "got nan."),
        (True, TypeError, "got True of type bool"),
        ("0.9", TypeError, "got '0.9' of type str"),
        (None, TypeError, "NoneType"),
        (jnp.array([0.5, 0.9]), ValueError, "array of shape (2,)"),
    ],
)
def test_a_sparsity_that_is_none(sparsity, kind, fragment):
    with pytest.raises(kind) as error:
        jp.select({"a": jnp.ones((4, 5))}, jp.uniform, sparsity)
    assert fragment in str(error.value)


@pytest.mark.parametrize("scores", [{}, {"a": None}, {"a": {"b": None}, "c": ()}])
def test_nothing_to_prune(scores):
    with pytest.raises(ValueError, match="there is nothing to prune: all scores are None") as error:
        jp.select(scores, jp.uniform, 0.5)
    assert "prunable=matching(...)" in str(error.value)


@pytest.mark.parametrize("pattern", [None, "nm", (2, 4), 0.5])
def test_no_pattern(pattern):
    with pytest.raises(TypeError, match="pattern is a function") as error:
        jp.select({"a": jnp.ones((4, 5))}, jp.uniform, 0.5, pattern)
    assert f"got {pattern!r}" in str(error.value)


@pytest.mark.parametrize("allocation", [None, "erk", 0.9])
def test_no_allocation(allocation):
    with pytest.raises(TypeError, match="allocation is a function") as error:
        jp.select({"a": jnp.ones((4, 5))}, allocation, 0.5)
    assert "jp.erk or jp.global_threshold" in str(error.value)
    assert f"got {allocation!r}" in str(error.value)


@pytest.mark.parametrize(
    ("mask", "fragment"),
    [
        (jnp.ones((4, 5)), "got float32 of shape (4, 5)"),
        (jnp.ones((5, 4), bool), "got bool of shape (5, 4)"),
        (None, "got NoneType"),
    ],
)
def test_a_pattern_that_returns_no_mask(mask, fragment):
    with pytest.raises(TypeError, match="must return a bool mask") as error:
        jp.select({"layer": jnp.ones((4, 5))}, jp.uniform, 0.5, lambda s, d: mask)
    assert "of shape (4, 5) for 'layer'" in str(error.value) and fragment in str(error.value)


# --- sharding ------------------------------------------------------------------------------------


def sharded(w, kind):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(kind,))
    return jax.device_put(w, NamedSharding(mesh, P("d")))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("pattern", [jp.nm(2, 4), jp.channel(0)], ids=["nm", "channel first"])
def test_sharding_changes_no_mask_and_masks_take_it(kind, pattern):
    w = jax.random.normal(jax.random.key(0), (64, 8))
    own = sharded(w, kind)
    select = jax.jit(lambda w: jp.select(jp.magnitude(w), jp.uniform, 0.5, pattern))
    mask = select(own)
    np.testing.assert_array_equal(mask, select(w))
    assert mask.sharding.is_equivalent_to(own.sharding, 2)


@pytest.mark.parametrize("pattern", [jp.block(2, 2), jp.channel()], ids=["block", "channel"])
def test_sharding_changes_no_mask_across_devices(pattern):
    # XLA chooses the sharding of what is pooled across it; in sparsify the old masks give theirs
    w = jax.random.normal(jax.random.key(0), (64, 8))
    select = jax.jit(lambda w: jp.select(jp.magnitude(w), jp.uniform, 0.5, pattern))
    np.testing.assert_array_equal(select(sharded(w, AxisType.Auto)), select(w))


@pytest.mark.full
def test_sharding_changes_no_mask_of_lamp():
    w = jax.random.normal(jax.random.key(0), (64, 8))
    select = jax.jit(lambda w: jp.select(jp.lamp()(w), jp.uniform, 0.5))
    np.testing.assert_array_equal(select(sharded(w, AxisType.Auto)), select(w))
