"""What is found on the jaxpr of networks of many families, and what freezes."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxprune as jp
from jaxprune.coupling import Axis, check_coupling, take
from jaxprune.coupling.groups import chosen
from jaxprune.programs.primitives import RULES
from tests.coupling.networks import NETWORKS, built
from tests.coupling.test_stated import raised
from tests.quick import quick

X = jnp.ones((2, 4))


def weights(**shapes):
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {
        name: jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def groups_of(structure):
    return {
        name: (group.size, [str(member) for member in group.members])
        for name, group in structure.groups.items()
    }


# --- networks of many families --------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_groups(name):
    network = NETWORKS[name]
    variables, x = built(name)
    structure = jp.analyze(network.module.apply, variables, x)
    found = [(group.size, len(group.members)) for group in structure.groups.values()]
    assert found == network.groups
    assert structure.unknown == {}
    assert bool(structure.inexact) == (not network.exact)


def test_of_shapes_is_of_arrays():
    network = NETWORKS["batch norm"]
    variables, x = built("batch norm")
    shapes = jax.eval_shape(lambda: variables)
    structure = jp.analyze(network.module.apply, shapes, jax.ShapeDtypeStruct(x.shape, x.dtype))
    assert repr(structure) == repr(jp.analyze(network.module.apply, variables, x))


def test_under_jit_and_vmap_is_the_same():
    network = NETWORKS["mlp"]
    variables, x = built("mlp")
    plain = groups_of(jp.analyze(network.module.apply, variables, x))
    each = jax.vmap(network.module.apply, (None, 0))
    for fn in (jax.jit(network.module.apply), each, jax.checkpoint(network.module.apply)):
        assert groups_of(jp.analyze(fn, variables, x)) == plain


def test_of_nnx_is_of_linen():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 6, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(6, rngs=rngs, use_running_average=True)
            self.out = nnx.Linear(6, 2, rngs=rngs)

        def __call__(self, x):
            return self.out(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))

    graphdef, state = nnx.split(Net(nnx.Rngs(0)))
    fn = lambda state, x: nnx.merge(graphdef, state)(x)
    structure = jp.analyze(fn, state, jnp.ones((1, 4, 4, 3)))
    (group,) = structure.groups.values()
    assert group.size == 6
    assert {str(member) for member in group.members} == {
        "conv/kernel[3]", "conv/bias[0]", "norm/mean[0]", "norm/var[0]", "norm/scale[0]",
        "norm/bias[0]", "out/kernel[0]",
    }  # fmt: skip


def test_a_residual_stream_of_fifty_layers():
    """ResNet-50: the stem, two inside each of 16 bottlenecks, four streams."""

    class ResNet50(nn.Module):
        @nn.compact
        def __call__(self, x):
            norm = lambda: nn.BatchNorm(use_running_average=True)
            conv = lambda n, size, stride=1: nn.Conv(n, (size, size), stride, use_bias=False)
            x = nn.relu(norm()(conv(64, 7, 2)(x)))
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
            for stage, depth in enumerate((3, 4, 6, 3)):
                for block in range(depth):
                    width, stride = 64 * 2**stage, 2 if stage and not block else 1
                    y = nn.relu(norm()(conv(width, 1)(x)))
                    y = nn.relu(norm()(conv(width, 3, stride)(y)))
                    y = norm()(conv(4 * width, 1)(y))
                    x = norm()(conv(4 * width, 1, stride)(x)) if block == 0 else x
                    x = nn.relu(x + y)
            return nn.Dense(1000)(x.mean((1, 2)))

    net, x = ResNet50(), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    structure = jp.analyze(net.apply, variables, x)
    assert len(structure.groups) == 37
    sizes = [group.size for group in structure.groups.values()]
    streams = [group for group in structure.groups.values() if len(group.members) > 8]
    assert [group.size for group in streams] == [256, 512, 1024, 2048]
    assert sizes[0] == 64 and structure.inexact == {}


# --- what is on one axis --------------------------------------------------------------------------


def test_names_follow_the_data_and_say_what_is_needed():
    params = weights(z=(4, 6), a=(6, 5), m=(5, 2))
    structure = jp.analyze(lambda p, x: x @ p["z"] @ p["a"] @ p["m"], params, X)
    assert groups_of(structure) == {"z": (6, ["z[1]", "a[0]"]), "a": (5, ["a[1]", "m[0]"])}


def test_reshapes_refine_what_came_before():
    # 12 outputs turn out to be 3 x 4, and of the 4 a slice takes the last two
    params = weights(a=(4, 12), b=(3, 2, 2))

    def fn(p, x):
        y = (x @ p["a"]).reshape(-1, 3, 4)[..., 2:]
        return jnp.einsum("ncd,cde->ne", y, p["b"])

    structure = jp.analyze(fn, params, X)
    assert groups_of(structure) == {
        "a.axis1.part0": (3, ["a[1]", "b[0]"]),
        "a.axis1.part1": (2, ["a[1]"]),
        "a.axis1.part2": (2, ["a[1]", "b[1]"]),
    }


def test_a_reshape_in_another_order():
    params = weights(a=(4, 6), b=(12, 3))
    fn = lambda p, x: lax.reshape(x @ p["a"], (12,), dimensions=(1, 0)) @ p["b"]
    _, axis = jp.analyze(fn, params, X).coupling()["a"]
    assert axis == Axis("b", 0, outer=1, inner=2)  # of each neuron the batch of two


def test_stacked_and_taken_apart():
    params = weights(a=(4, 6), c=(4, 6), b=(6, 2))

    def fn(p, x):
        first, last = jnp.unstack(jnp.stack([x @ p["a"], x @ p["c"]], 1), axis=1)
        return first * last @ p["b"]

    assert groups_of(jp.analyze(fn, params, X)) == {"a": (6, ["a[1]", "c[1]", "b[0]"])}
    heads = lambda p, x: sum(jnp.unstack((x @ p["a"]).reshape(2, 2, 3), axis=1)) @ jnp.ones((3, 1))
    structure = jp.analyze(heads, params, X)
    assert groups_of(structure) == {"a": (3, ["a[1]"])}
    assert structure.frozen["taken apart by unstack"] == (("a", 1),)


def test_a_cut_across_segments_freezes():
    # segments of 4 and 2, cut as 3 x 2 within rows: 4 | 2 ends between rows of 2, but not of 3
    params = weights(a=(4, 4), b=(4, 2))
    joined = lambda p, x: jnp.concatenate([x @ p["a"], x @ p["b"]], -1)
    rows = lambda n: lambda p, x: joined(p, x).reshape(-1, 6 // n, n).sum(1)
    assert groups_of(jp.analyze(rows(2), params, X)) == {"a": (2, ["a[1]"])}  # of 2 each
    unaligned = jp.analyze(rows(3), params, X)
    (why,) = {why for why in unaligned.frozen if "cuts across" in why}
    assert "reshape (6) -> (2, 3) cuts across, at test_analyze.py" in why
    assert {str(member) for member in unaligned.frozen[why]} == {"a[1]", "b[1]"}


def test_a_residual_onto_the_input_freezes_the_stream_unless_it_may_be_sliced():
    params = weights(a=(4, 6), b=(6, 4))
    fn = lambda p, x: (x + jnp.tanh(x @ p["a"]) @ p["b"]).sum(-1)
    assert list(jp.analyze(fn, params, X).groups) == ["a"]
    structure = jp.analyze(fn, params, X, sliceable_inputs=[("0", -1)])
    assert groups_of(structure)["a.axis0"] == (4, ["a[0]", "b[1]", "input 0[1]"])


def test_a_parameter_used_twice_is_in_one_group():
    params = weights(embed=(10, 6), w=(6, 6))
    fn = lambda p, tokens: p["embed"][tokens] @ p["w"] @ p["embed"].T
    structure = jp.analyze(fn, params, jnp.ones((2, 3), jnp.int32))
    assert groups_of(structure) == {"embed": (6, ["embed[1]", "w[0]", "w[1]"])}
    assert structure.frozen["indexed by gather: rows of a table"] == (("embed", 0),)


def test_captured_constants_go_with_the_rest():
    table = jnp.asarray(np.arange(12.0).reshape(2, 6))
    params = weights(a=(4, 6), b=(6, 2))
    structure = jp.analyze(lambda p, x: (x @ p["a"] + table) @ p["b"], params, X)
    assert groups_of(structure) == {"a": (6, ["a[1]", "b[0]"])}


def test_loops_and_branches():
    params = weights(a=(4, 5), w=(5, 5), b=(5, 2))

    def fn(p, x):
        h = x @ p["a"]
        h = lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] @ p["w"]), (0, h))[1]
        h = lax.cond(x[0, 0] > 0, lambda h: h, lambda h: h @ p["w"], h)
        return lax.fori_loop(0, 2, lambda i, h: jnp.sin(h), h) @ p["b"]

    structure = jp.analyze(fn, params, X)
    assert groups_of(structure) == {"a": (5, ["a[1]", "w[0]", "w[1]", "b[0]"])}


# --- what freezes, and why ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("through", "why"),
    [
        (lambda h: jnp.sort(h, -1), "sorted"),
        (lambda h: jnp.cumsum(h, -1), "a running reduction depends on its order"),
        (lambda h: jnp.flip(h, -1), "reversed"),
        (lambda h: lax.top_k(h, 6)[0], "ranked by top_k"),
        (lambda h: jnp.fft.fft(h).real, "transformed by fft"),
        (lambda h: h * jnp.arange(6.0)[None], "positions, of iota"),
        (lambda h: jax.nn.one_hot(h.argmax(-1), 6), "what argmax or argmin finds is a place on it"),
        (lambda h: h[:, ::2].repeat(2, 1), "sliced with a stride"),
        (lambda h: h[:, jnp.array([0, 1, 2, 3, 4, 5])], "indexed by gather"),
        (
            lambda h: lax.dynamic_slice_in_dim(h, h[0, 0].astype(int), 5, 1).sum(1)[:, None] + h,
            "sliced at a place known at run time only",
        ),
        (
            lambda h: lax.dynamic_update_slice_in_dim(h, h[:, :2], h[0, 0].astype(int), 1),
            "written to at a place known at run time only",
        ),
        (
            lambda h: lax.dynamic_update_slice_in_dim(jnp.ones((2, 9)), h, h[0, 0].astype(int), 1),
            "written to a place known at run time only",
        ),
        (
            lambda h: lax.reduce_window(h, 0.0, lax.add, (1, 1), (1, 1), ((0, 0), (1, 0))),
            "a window moves over it",
        ),
    ],
)
def test_frozen_by(through, why):
    params = weights(a=(4, 6), b=(6, 2))
    structure = jp.analyze(lambda p, x: through(x @ p["a"])[:, :6] @ p["b"], params, X)
    assert "a[1]" in {str(m) for w, ms in structure.frozen.items() if why in w for m in ms}
    assert "a" not in structure.groups and "a.axis1" not in structure.groups
    assert why in repr(structure)


@pytest.mark.parametrize(
    ("through", "n"),
    [
        (lambda h: jnp.roll(h, 1, 1), 5),
        (lambda h: h + h[:, :1], 5),
        (lambda h: jnp.concatenate([h[:, :2], h[:, 3:], h[:, 2:3]], 1), 5),
        (lambda h: h * 2, 6),
    ],
)
def test_a_neuron_that_is_read_alone_is_told_of(through, n):
    """It is in no group, and the table says so."""
    params = weights(a=(4, 6), b=(6, 2))
    structure = jp.analyze(lambda p, x: through(x @ p["a"]) @ p["b"], params, X)
    assert sum(group.size for group in structure.groups.values()) == n
    said = "one neuron that is read apart from the others, such as h[:, 0]: a[1] b[0]"
    assert (said in repr(structure)) == (n < 6)


def test_a_function_that_returns_new_statistics_freezes_what_they_are_of():
    """Why one analyses the function as it is evaluated: an output's axes can't be pruned."""
    params = weights(a=(4, 6), b=(6, 2))

    def train(p, x):
        h = x @ p["a"]
        return h @ p["b"], {"mean": h.mean(0)}

    structure = jp.analyze(train, params, X)
    assert not structure.groups
    assert structure.frozen["an axis of output 1/mean"] == (("a", 1), ("b", 0))


def test_an_unknown_primitive_freezes_and_says_so():
    params = weights(a=(4, 4), b=(4, 2))
    fn = lambda p, x: jnp.linalg.cholesky(x.T @ x + p["a"]) @ p["b"]
    structure = jp.analyze(fn, params, X)
    assert not structure.groups
    assert list(structure.unknown) == ["cholesky"]
    said = " ".join(repr(structure).split())
    assert "read by 'cholesky', which has no rule, at test_analyze.py:" in said
    assert "register_rule('cholesky', ...) teaches it" in said


@pytest.mark.parametrize(
    ("kind", "through"),
    [
        ("svd", lambda h: h * jnp.linalg.svd(h, compute_uv=False)[:, None]),
        ("qr", lambda h: h + jnp.linalg.qr(h)[0].sum()),
        ("eigh", lambda h: h @ jnp.linalg.eigh(h.T @ h)[1]),
        ("approx_top_k", lambda h: h * lax.approx_max_k(h, 2)[0].sum()),
        ("pure_callback", lambda h: jax.pure_callback(np.sin, h, h, vmap_method="sequential")),
        (
            "tridiagonal_solve",
            lambda h: lax.linalg.tridiagonal_solve(h, h + 9, h, h[..., None])[..., 0],
        ),
        ("cholesky", lambda h: lax.map(lambda h: h @ jnp.linalg.cholesky(h.T @ h), h[:, None])[0]),
    ],
)
def test_whatever_has_no_rule_freezes_with_its_line(kind, through):
    params = weights(a=(4, 6), b=(6, 2))
    structure = jp.analyze(lambda p, x: through(x @ p["a"]) @ p["b"], params, X)
    assert kind in structure.unknown and "test_analyze.py" in structure.unknown[kind]
    why = next(why for why in structure.frozen if f"read by '{kind}', which has no rule" in why)
    assert ("a", 1) in structure.frozen[why] and not structure.groups


def pairs_as_one(h):
    halves = h.astype(jnp.bfloat16).reshape(-1, 3, 2)
    return lax.bitcast_convert_type(halves, jnp.float32)


@pytest.mark.parametrize(
    ("through", "frozen"),
    [
        (
            lambda h: lax.bitcast_convert_type(lax.bitcast_convert_type(h, jnp.int32), h.dtype),
            False,
        ),
        (lambda h: lax.bitcast_convert_type(h, jnp.int8).sum(-1) * 1.0, False),  # four of each
        (pairs_as_one, True),
    ],
)
def test_numbers_as_bits(through, frozen):
    params = weights(a=(4, 6), b=(6, 2))
    fn = lambda p, x: through(x @ p["a"]) @ p["b"][: through(jnp.ones((2, 6))).shape[-1]]
    structure = jp.analyze(fn, params, X)
    assert structure.unknown == {}
    assert ("the parts of a number" in structure.frozen) == frozen


RANDOM = {
    "uniform": lambda key, h: jax.random.uniform(key, h.shape),
    "bernoulli": lambda key, h: jax.random.bernoulli(key, 0.5, h.shape),
    "normal": lambda key, h: jax.random.normal(key, h.shape, jnp.bfloat16),
    "gumbel": lambda key, h: jax.random.gumbel(key, h.shape),
    "integers": lambda key, h: jax.random.randint(key, h.shape, 0, 3),
    "gamma": lambda key, h: jax.random.gamma(key, jnp.abs(h) + 1),
    "poisson": lambda key, h: jax.random.poisson(key, jnp.abs(h)),
    "categorical": lambda key, h: jax.random.categorical(key, jnp.ones((*h.shape, 3))),
    "a raw key": lambda key, h: jax.random.uniform(jax.random.key_data(key), h.shape),
    "a key an example": lambda key, h: jax.vmap(lambda k: jax.random.uniform(k, h.shape[1:]))(
        jax.random.split(jax.random.fold_in(key, 1), len(h))
    ),
    "rbg": lambda key, h: jax.random.uniform(jax.random.key(0, impl="rbg"), h.shape),
    "a generator": lambda key, h: lax.rng_bit_generator(jnp.zeros(4, jnp.uint32), h.shape)[1],
    "lax": lambda key, h: lax.rng_uniform(0.0, 1.0, h.shape),
}


@pytest.mark.parametrize("draw", RANDOM.values(), ids=RANDOM.keys())
def test_random_numbers_are_drawn_for_what_is_left(draw):
    """They are others than those of the larger array, and the structure says so."""
    params, key = weights(a=(4, 6), b=(6, 2)), jax.random.key(0)
    fn = lambda p, x, key: ((h := x @ p["a"]) * draw(key, h)) @ p["b"]
    structure = jp.analyze(fn, params, X, key)
    assert list(structure.groups) == ["a"] and structure.unknown == {}
    assert all(groups == ("a",) for groups in structure.inexact.values()) and structure.inexact
    small = jp.compact(structure, params, {"a": np.arange(6) < 3})
    assert jax.eval_shape(small.fn, small.params, X, key).shape == (2, 2)


def test_a_primitive_is_taught():
    double = jax.extend.core.Primitive("double")
    double.def_impl(lambda x: 2 * x)
    double.def_abstract_eval(lambda x: x)
    params = weights(a=(4, 6), b=(6, 2))
    fn = lambda p, x: double.bind(x @ p["a"]) @ p["b"]
    try:
        assert not jp.analyze(fn, params, X).groups
        jp.structured.register_rule("double", lambda reader, eqn, operands: operands)
        assert list(jp.analyze(fn, params, X).groups) == ["a"]
        jp.structured.register_rule("double", lambda reader, eqn, operands: [()])
        said = raised(lambda: jp.analyze(fn, params, X))
        assert "the rule of 'double' gave axes of sizes () for a result of shape (2, 6)" in said
    finally:
        RULES.pop("double", None)
    assert "a primitive by its name" in raised(
        lambda: jp.structured.register_rule(double, lambda *a: a), TypeError
    )
    assert "axes is a function" in raised(
        lambda: jp.structured.register_rule("double", None), TypeError
    )


def test_frozen_by_the_caller_or_for_want_of_use():
    params = weights(a=(4, 6), b=(6, 5), c=(5, 2), lost=(3, 3))
    fn = lambda p, x: x @ p["a"] @ p["b"] @ p["c"]
    structure = jp.analyze(fn, params, X)
    assert structure.frozen["not read by the function"] == (("lost", 0), ("lost", 1))
    assert list(jp.analyze(fn, params, X, freeze=["a"]).groups) == ["b"]
    assert list(jp.analyze(fn, params, X, freeze=[("b", -1)]).groups) == ["a"]
    assert "frozen by ('b', -1): b[1] c[0]" in repr(jp.analyze(fn, params, X, freeze=[("b", -1)]))


HEADS = {
    "attention": {"heads": 4, "dims": 4},
    "grouped queries": {"heads": 2, "queries": 2, "dims": 4},
    "rotary": {"heads": 2, "queries": 2},
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_are_called_heads(name):
    """And the queries that share one, and the dimensions of queries and keys; of fused ones too."""
    variables, x = built(name)
    structure = jp.analyze(NETWORKS[name].module.apply, variables, x)
    layer = "params/CheckpointBlock_1/DenseGeneral_0"
    roles = {role: structure.groups[f"{layer}.{role}"].size for role in HEADS[name]}
    assert roles == HEADS[name]
    assert structure.groups["params/CheckpointBlock_1/DenseGeneral_2"].size == 4  # of values


def test_fused_heads_are_called_heads():
    variables, x = built("fused heads")
    structure = jp.analyze(NETWORKS["fused heads"].module.apply, variables, x)
    sizes = {name: group.size for name, group in structure.groups.items()}
    assert sizes == {"params/Dense_0.heads": 2, "params/Dense_0.dims": 4, "params/Dense_0": 4}


@pytest.mark.parametrize("keys,roles", [(2, {"heads": 2, "queries": 2}), (1, {"queries": 4})])
def test_queries_are_called_queries_where_no_keys_are_repeated(keys, roles):
    """One flat kernel for queries, keys and values, and the product that reads each key once."""
    ends = 4 * 3, (4 + keys) * 3
    sizes = {"first": (4, 5), "qkv": (5, (4 + 2 * keys) * 3), "out": (4 * 3, 5), "last": (5, 2)}

    def fn(p, x):
        heads = lambda y: y.reshape(*y.shape[:2], -1, 3)
        q, k, v = map(heads, jnp.split(x @ p["first"] @ p["qkv"], ends, -1))
        return (
            jax.nn.dot_product_attention(q, k, v).reshape(*x.shape[:2], -1) @ p["out"] @ p["last"]
        )

    structure = jp.analyze(fn, weights(**sizes), jnp.ones((2, 6, 4)))
    found = {name: group.size for name, group in structure.groups.items()}
    wanted = {f"qkv.{role}": n for role, n in roles.items()}
    assert found == {"first": 5, **wanted, "qkv.dims": 3, "qkv": 3, "out": 5}


@pytest.mark.parametrize("name", NETWORKS)
def test_printed_names_are_rules(name):
    """Of groups, and of axes; no name is a glob that means something else."""
    variables, x = built(name)
    structure = jp.analyze(NETWORKS[name].module.apply, variables, x)
    names = list(structure.groups)
    assert [own for own in names if set(own) & set("*?[]")] == []
    for group in names:
        assert chosen([group], names) == [group]
    again = jp.analyze(NETWORKS[name].module.apply, variables, x, freeze=[names[-1]])
    if names[-1] not in structure.axes:  # a leaf of that name stays with all of its groups
        assert list(again.groups) == names[:-1]  # and names stay what they were
    assert set(again.frozen[f"frozen by {names[-1]!r}"]) >= set(structure.groups[names[-1]].members)
    axis = str(structure.groups[names[-1]].members[0])
    assert (
        names[-1] not in jp.analyze(NETWORKS[name].module.apply, variables, x, freeze=[axis]).groups
    )


def test_frozen_by_a_glob_of_groups():
    variables, x = built("grouped queries")
    fn = NETWORKS["grouped queries"].module.apply
    every, left = (list(jp.analyze(fn, variables, x, freeze=f).groups) for f in ([], ["*.heads"]))
    assert left == [name for name in every if not name.endswith(".heads")] and len(left) == 9


# --- couplings for alignment ----------------------------------------------------------------------


@pytest.mark.parametrize("name", quick(["mlp", "flattened", "channels first", "lstm"]))
def test_the_coupling_permutes(name):
    network = NETWORKS[name]
    variables, x = built(name)
    fn = network.module.apply
    structure = jp.analyze(fn, variables, x)
    groups = check_coupling(structure.coupling(), variables)
    assert list(groups) == list(structure.groups)
    orders = {
        g: jax.random.permutation(jax.random.key(i), groups[g].size) for i, g in enumerate(groups)
    }
    moved = take(variables, structure.coupling(), orders)
    np.testing.assert_allclose(fn(moved, x), fn(variables, x), rtol=1e-4, atol=1e-4)


def test_a_found_coupling_is_plain_data():
    variables, x = built("mlp")
    found = jp.analyze(NETWORKS["mlp"].module.apply, variables, x).coupling()
    by_hand = {
        f"params/Dense_{i}": {
            (f"params/Dense_{i}/kernel", 1, 1, 1),
            (f"params/Dense_{i}/bias", 0, 1, 1),
            (f"params/Dense_{i + 1}/kernel", 0, 1, 1),
        }
        for i in range(2)
    }
    assert {name: set(axes) for name, axes in found.items()} == by_hand


def test_networks_are_matched_by_what_was_found():
    network = NETWORKS["flattened"]
    variables, x = built("flattened")
    coupling = jp.analyze(network.module.apply, variables, x).coupling()
    orders = {name: jnp.arange(n)[::-1] for name, n in zip(coupling, (5, 6, 7), strict=True)}
    moved = jp.analysis.permute(variables, coupling, orders)
    found = jp.analysis.match_weights(jax.random.key(0), variables, moved, coupling)
    again = jp.analysis.permute(moved, coupling, found)
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_what_a_coupling_cannot_say_is_left_out():
    variables, x = built("concat")
    structure = jp.analyze(NETWORKS["concat"].module.apply, variables, x)
    assert structure.coupling() == {}
    variables, x = built("group norm")
    assert jp.analyze(NETWORKS["group norm"].module.apply, variables, x).coupling() == {}


# --- the table, and bad input ---------------------------------------------------------------------


def test_the_table():
    params = weights(a=(4, 6), b=(6, 2))
    structure = jp.analyze(lambda p, x: jax.nn.softmax(x @ p["a"]) @ p["b"], params, X)
    said = repr(structure)
    assert "a         6               6  a[1] b[0]" in said
    assert "1 group of 6 neurons; 36 of 36 weights (100.0%) can be pruned" in said
    assert "an axis of input 0: a[0]" in said and "an axis of output 0: b[1]" in said
    assert "reduce_sum at test_analyze.py" in said and "they differ." in said


@pytest.mark.parametrize(
    ("options", "kind", "fragment"),
    [
        ({"freeze": ["head/*"]}, ValueError, "the rule 'head/*' matches no leaf"),
        ({"freeze": ["*.heads"]}, ValueError, "It matches no group either: 'a'."),
        ({"freeze": "a"}, TypeError, "freeze is a list of rules; got 'a'. Write ['a']"),
        ({"freeze": [("a", 2)]}, ValueError, "freeze names axis 2 of 'a', of shape (4, 6)"),
        ({"sliceable_inputs": [("1", 0)]}, ValueError, "The inputs are '0'."),
        ({"sliceable_inputs": [("0", 2)]}, ValueError, "and '0' has 2 axes."),
        ({"sliceable_inputs": ["0"]}, ValueError, "got '0'"),
    ],
)
def test_bad_input(options, kind, fragment):
    params = weights(a=(4, 6), b=(6, 2))
    fn = lambda p, x: x @ p["a"] @ p["b"]
    assert fragment in raised(lambda: jp.analyze(fn, params, X, **options), kind)


def test_bad_arguments():
    assert "such as module.apply; got dict" in raised(lambda: jp.analyze({}, {}), TypeError)
    said = raised(lambda: jp.analyze(lambda p, x, mode: x, {}, X, "eval"), TypeError)
    assert "Bind what is no array" in said


def test_sizes_of_groups_on_a_split_axis_are_numbers_that_json_takes():
    fn = lambda p, x: jnp.multiply(*jnp.split(x @ p["w"], 2, -1)) @ p["o"]
    params = {"w": jnp.ones((4, 8)), "o": jnp.ones((4, 2))}
    structure = jp.analyze(fn, params, jnp.ones((1, 4)))
    sizes = {name: group.size for name, group in structure.groups.items()}
    assert set(json.loads(json.dumps(sizes)).values()) == {4}
