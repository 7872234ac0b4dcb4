"""FLOPs by leaf: what XLA counts, then numbers to check by eye, then every way to write a layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from jaxprune.programs.flops import count_flops

X = jnp.ones((4, 20))
W = jnp.ones((20, 30))
DENSE = 2 * 4 * 20 * 30


def of(apply_fn, params, *inputs, **options):
    """The leaves that cost something, and what no leaf accounts for."""
    flops = count_flops(apply_fn, params, *inputs, **options)
    assert all(type(n) is int for n in flops.leaves.values())
    return {path: n for path, n in flops.leaves.items() if n}, flops.other


def shapes(module, *inputs):
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


def applied(module):
    return lambda params, *inputs: module.apply({"params": params}, *inputs)


class MLP(nn.Module):
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for width in self.widths[:-1]:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.widths[-1])(x)


# --- laws ----------------------------------------------------------------------------------------


def xla_flops(f, *args):
    return jax.jit(f).lower(*args).compile().cost_analysis()["flops"]


def test_the_whole_is_what_xla_counts_within_five_percent():
    module, x = MLP((300, 100, 10)), jnp.ones((16, 784))
    params = shapes(module, x)
    leaves, other = of(applied(module), params, x)
    assert sum(leaves.values()) + other == pytest.approx(
        xla_flops(applied(module), params, x), rel=0.05
    )


def test_a_transposed_convolution_is_what_xla_counts_but_for_its_border():
    # XLA leaves out the padding, and both leave out the zeros between inputs
    f = lambda w, x: lax.conv_transpose(x, w, (2, 2), "SAME")
    w, x = jnp.ones((3, 3, 3, 4)), jnp.ones((1, 32, 32, 3))
    expected = 2 * 64 * 64 * 4 * 27 // 4
    assert of(f, w, x) == ({"": expected}, 0)
    assert expected == pytest.approx(xla_flops(f, w, x), rel=0.05)


def test_a_fraction_of_a_flop_is_dropped():
    layout = ("NHWC", "HWIO", "NHWC")
    f = lambda w, x: lax.conv_general_dilated(
        x, w, (1, 1), [(1, 1)] * 2, lhs_dilation=(2, 2), dimension_numbers=layout
    )
    w, x = jnp.ones((3, 3, 1, 1)), jnp.ones((1, 3, 3, 1))
    assert of(f, w, x) == ({"": 2 * 5 * 5 * 9 // 4}, 0)


def test_it_is_traced_and_never_run():
    def apply_fn(w, x):
        jax.debug.callback(lambda: pytest.fail("it ran"))
        return x @ w

    abstract = jax.ShapeDtypeStruct((20, 30), jnp.bfloat16)
    assert of(apply_fn, abstract, jax.ShapeDtypeStruct((4, 20), jnp.bfloat16)) == ({"": DENSE}, 0)


WRITTEN = {
    "jit": jax.jit,
    "remat": jax.checkpoint,
    "nested": lambda f: jax.jit(jax.checkpoint(jax.jit(f))),
    "vmap": lambda f: jax.vmap(f, in_axes=(None, 0)),
    "map": lambda f: lambda w, x: lax.map(lambda row: f(w, row), x),
    "where": lambda f: lambda w, x: f(jnp.where(w > 0.5, w, 0), x),
    "mask": lambda f: lambda w, x: f(w * (w > 0.5), x),
    "cast": lambda f: lambda w, x: f(w.astype(jnp.bfloat16), x),
    "reshape": lambda f: (
        lambda w, x: f(w.T.reshape(5, 6, 20).transpose(2, 0, 1).reshape(20, 30), x)
    ),
    "standardize": lambda f: lambda w, x: f(jax.nn.standardize(w, 0), x),
    "concatenate": lambda f: lambda w, x: f(jnp.concatenate([w[:7], w[7:]]), x),
    "cond": lambda f: lambda w, x: lax.cond(x.sum() > 0, lambda: f(w, x), lambda: f(2 * w, x)),
    "branch": lambda f: (
        lambda w, x: lax.cond(x.sum() > 0, lambda: f(w, x), lambda: jnp.zeros((4, 30)))
    ),
    "fori": lambda f: lambda w, x: lax.fori_loop(0, 1, lambda i, y: f(w, x), jnp.zeros((4, 30))),
    "carry": lambda f: lambda w, x: f(lax.fori_loop(0, 3, lambda i, v: v * 0.9, w), x),
}


@pytest.mark.parametrize("wrap", WRITTEN.values(), ids=WRITTEN.keys())
def test_a_layer_costs_the_same_however_it_is_written(wrap):
    assert of(wrap(lambda w, x: x @ w), W, X) == ({"": DENSE}, 0)


def test_masks_that_are_inputs_leave_a_weight_a_weight():
    params, masks = {"w": W}, {"w": W > 0}
    f = lambda params, masks, x: x @ jp.apply_masks(params, masks)["w"]
    assert of(f, params, masks, X) == ({"w": DENSE}, 0)


def test_a_stack_of_seeds_costs_their_sum():
    f = jax.vmap(lambda params, x: x @ params["w"], in_axes=(0, None))
    assert of(f, {"w": jnp.ones((8, 20, 30))}, X) == ({"w": 8 * DENSE}, 0)


# --- numbers to check by eye ---------------------------------------------------------------------


def test_dense_and_lenet():
    module = nn.Dense(30)
    assert of(applied(module), shapes(module, X), X) == ({"kernel": DENSE}, 0)
    module, x = MLP((300, 100, 10)), jnp.ones((1, 784))
    leaves = {"Dense_0/kernel": 470_400, "Dense_1/kernel": 60_000, "Dense_2/kernel": 2_000}
    assert of(applied(module), shapes(module, x), x) == (leaves, 0)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, 2 * 8 * 8 * 6 * 4 * 9),  # outputs * input channels * window
        ({"strides": 2}, 2 * 4 * 4 * 6 * 4 * 9),
        ({"padding": "VALID"}, 2 * 6 * 6 * 6 * 4 * 9),
        ({"feature_group_count": 2}, 2 * 8 * 8 * 6 * 2 * 9),
        ({"kernel_dilation": 2}, 2 * 8 * 8 * 6 * 4 * 9),
    ],
)
def test_convolutions(options, expected):
    module, x = nn.Conv(6, (3, 3), **options), jnp.ones((1, 8, 8, 4))
    assert of(applied(module), shapes(module, x), x) == ({"kernel": expected}, 0)


def test_convolution_of_a_stack_of_kernels():
    module, x = nn.Conv(6, (3, 3)), jnp.ones((1, 8, 8, 4))
    params = jax.tree.map(lambda leaf: jnp.ones((3, *leaf.shape)), shapes(module, x))
    f = jax.vmap(applied(module), in_axes=(0, None))
    assert of(f, params, x) == ({"kernel": 3 * 2 * 8 * 8 * 6 * 4 * 9}, 0)


def test_convolution_written_as_slices_and_a_product():
    def apply_fn(w, x):
        rows = [x[:, i : i + 6, j : j + 6] for i in range(3) for j in range(3)]
        return jnp.concatenate(rows, -1) @ w.reshape(36, 6)

    w, x = jnp.ones((3, 3, 4, 6)), jnp.ones((1, 8, 8, 4))
    assert of(apply_fn, w, x) == ({"": 2 * 6 * 6 * 6 * 4 * 9}, 0)


def test_attention_scores_belong_to_no_leaf():
    module, x = nn.MultiHeadDotProductAttention(2), jnp.ones((3, 5, 8))
    leaves, other = of(lambda p, x: applied(module)(p, x, x), shapes(module, x, x), x)
    assert leaves == {f"{name}/kernel": 2 * 15 * 8 * 8 for name in ("key", "out", "query", "value")}
    assert other == 2 * (2 * 3 * 5 * 5 * 8)  # scores, and values by their softmax


def test_layers_stacked_by_nn_scan():
    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.scan(
                lambda module, x, _: (nn.relu(module(x)), None),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=7,
            )
            return layer(nn.Dense(20), x, None)[0]

    params = shapes(Stack(), X)
    assert params["Dense_0"]["kernel"].shape == (7, 20, 20)
    assert of(applied(Stack()), params, X) == ({"Dense_0/kernel": 7 * 2 * 4 * 20 * 20}, 0)


def test_scan_over_time_times_its_length_and_kernels_joined_share_by_size():
    # OptimizedLSTMCell joins its four kernels, and multiplies once
    module, x = nn.RNN(nn.OptimizedLSTMCell(8)), jnp.ones((2, 5, 3))
    leaves, other = of(applied(module), shapes(module, x), x)
    assert other == 0
    for path, flops in leaves.items():
        inputs = 3 if path.split("/")[-2].startswith("i") else 8
        assert flops == 5 * 2 * 2 * inputs * 8
    assert len(leaves) == 8
    joined = lambda p, x: x @ jnp.concatenate([p["a"], p["b"], jnp.zeros((20, 5))], axis=1)
    params = {"a": jnp.ones((20, 10)), "b": jnp.ones((20, 30))}
    assert of(joined, params, X) == ({"a": 2 * 4 * 20 * 45 // 4, "b": 2 * 4 * 20 * 45 * 3 // 4}, 0)


def test_nnx_model_through_split_and_merge():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(20, 30, rngs=rngs), nnx.Linear(30, 5, rngs=rngs))
    graph, params = nnx.split(model)
    leaves, other = of(lambda params, x: nnx.merge(graph, params)(x), params, X)
    assert (sorted(leaves.values()), other) == ([2 * 4 * 30 * 5, DENSE], 0)
    assert all(path.endswith("kernel") for path in leaves)


def test_custom_derivatives():
    @jax.custom_vjp
    def straight_through(w, x):
        return x @ jnp.sign(w)

    straight_through.defvjp(lambda w, x: (x @ w, (w, x)), lambda r, g: (r[1].T @ g, g @ r[0].T))
    assert of(straight_through, W, X) == ({"": DENSE}, 0)


def test_shard_map_counts_the_part_of_every_device():
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Auto,))
    specs = {"in_specs": (P(), P("batch")), "out_specs": P("batch")}
    f = jax.shard_map(lambda w, x: x @ w, mesh=mesh, **specs)
    assert of(f, W, X) == ({"": DENSE}, 0)


# --- whose product it is -------------------------------------------------------------------------


def test_of_two_leaves_the_prunable_one_is_charged_else_the_larger():
    params = {"token": jnp.ones((4, 20)), "w": W}
    f = lambda p: p["token"] @ p["w"]
    assert of(f, params) == ({"w": DENSE}, 0)
    assert of(f, params, prunable=["token"]) == ({"token": DENSE}, 0)


def test_what_a_bias_or_a_norm_has_touched_is_no_weight():
    params = {"bias": jnp.ones((1, 20)), "scale": jnp.ones((1, 20)), "w": W}
    assert of(lambda p, x: ((x + p["bias"]) * p["scale"]) @ p["w"], params, X) == ({"w": DENSE}, 0)


def test_weight_normalisation_belongs_to_the_direction():
    params = {"g": jnp.ones((1, 30)), "v": W}
    f = lambda p, x: x @ (p["g"] * p["v"] / jnp.linalg.norm(p["v"], axis=0, keepdims=True))
    assert of(f, params, X) == ({"v": DENSE}, 0)


def test_low_rank_update_of_a_kernel():
    params = {"a": jnp.ones((20, 2)), "b": jnp.ones((2, 30)), "w": W}
    leaves, other = of(lambda p, x: x @ (p["w"] + p["a"] @ p["b"]), params, X)
    assert (leaves, other) == ({"b": 2 * 20 * 2 * 30, "w": DENSE}, 0)
    leaves, other = of(lambda p, x: x @ p["a"] @ p["b"], params, X)
    assert (leaves, other) == ({"a": 2 * 4 * 20 * 2, "b": 2 * 4 * 2 * 30}, 0)


def test_embedding_look_ups_are_free_and_the_tied_head_is_not():
    params = {"embed": jnp.ones((50, 20)), "w": jnp.ones((20, 20))}
    f = lambda p, tokens: p["embed"][tokens] @ p["w"] @ p["embed"].T
    leaves, other = of(f, params, jnp.zeros(4, int))
    assert (leaves, other) == ({"embed": 2 * 4 * 20 * 50, "w": 2 * 4 * 20 * 20}, 0)


def test_params_of_any_tree():
    assert of(lambda ws, x: jnp.dot(jnp.dot(x, ws[0]), ws[1]), (W, W.T), X) == (
        {"0": DENSE, "1": DENSE},
        0,
    )
    holes = {"w": W, "none": None}
    assert of(lambda p, x: x @ p["w"], holes, X) == ({"w": DENSE}, 0)


# --- what can't be counted is said ---------------------------------------------------------------


def test_while_is_one_turn_and_says_so():
    def apply_fn(w, x):
        again = lambda y: (y @ w.T).sum() > 0
        return lax.while_loop(again, lambda y: y @ w.T @ w, x @ w)

    flops = count_flops(apply_fn, W, X)
    assert flops.leaves == {"": 4 * DENSE}
    assert flops.notes == ("a while loop, of unknown length, is counted as one turn",)


def test_a_while_loop_without_products_needs_no_note():
    f = lambda w, x: lax.while_loop(lambda y: y.sum() > 9, lambda y: y / 2, x @ w)
    assert count_flops(f, W, X) == ({"": DENSE}, 0, ())


def test_of_experts_each_row_is_read_by_one():
    f = lambda w, x: lax.ragged_dot(x, w, jnp.array([2, 2]))
    assert of(f, jnp.ones((2, 20, 30)), X) == ({"": DENSE}, 0)
    slope = lambda w, x: jax.grad(lambda w: f(w, x).sum())(w)
    assert of(slope, jnp.ones((2, 20, 30)), X)[1] == DENSE  # of inputs and slopes, by expert
    both = lambda w, x: jax.grad(lambda w: (f(w, x) ** 2).sum())(w)
    assert of(both, jnp.ones((2, 20, 30)), X) == ({"": DENSE}, DENSE)


def test_unreadable_products_are_noted():
    f = lambda w, x: jax.pure_callback(lambda w, x: x @ w, jnp.ones((4, 30)), w, x)
    flops = count_flops(f, W, X)
    assert flops.notes == ("the products inside pure_callback are not counted",)


def test_no_flops_in_sorts_scatters_and_reductions():
    f = lambda w, x: jnp.sort(x).at[0].add(1.0).sum() + lax.reduce(w, 0.0, lax.add, (0, 1))
    assert count_flops(f, W, X) == ({"": 0}, 0, ())


# --- bad input -----------------------------------------------------------------------------------


def test_bad_input():
    with pytest.raises(TypeError, match=r"apply_fn is a function .*model.apply.*got FrozenDict"):
        count_flops(nn.FrozenDict({}), W, X)
    with pytest.raises(TypeError, match=r"got 'eval' of type str. Bind what is no array"):
        count_flops(lambda w, x, mode: x @ w, W, X, "eval")


def test_an_error_of_the_model_is_its_own():
    with pytest.raises(TypeError, match="dot_general requires contracting dimensions"):
        count_flops(lambda w, x: x @ w, W, np.ones((4, 21)))
