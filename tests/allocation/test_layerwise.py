"""How much of each leaf: closed forms against the loop of the papers, and known networks."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune.selection.counting import count
from jaxprune.selection.deferred import defer
from tests.quick import quick


def shapes_as_scores(*shapes):
    """Scores of which an allocation reads the shapes only."""
    return {f"layer_{i:02d}": jax.ShapeDtypeStruct(s, jnp.float32) for i, s in enumerate(shapes)}


def densities(allocation, shapes, density):
    sparsities = allocation(shapes_as_scores(*shapes), 1 - density)
    return [1 - s for s in sparsities.values()]


def by_the_loop(shapes, density, raw):
    """Card 4: all layers that attain the largest raw score go dense, until nobody exceeds 1."""
    p, n = np.array([raw(s) for s in shapes]), np.array([math.prod(s) for s in shapes], float)
    dense = np.zeros(len(shapes), bool)
    while True:
        eps = (density * n[~dense].sum() - (1 - density) * n[dense].sum()) / (p * n)[~dense].sum()
        top = p[~dense].max()
        if eps * top <= 1 + 1e-12:
            return np.where(dense, 1.0, eps * p)
        dense |= ~dense & (p == top)
        if dense.all():
            return np.ones(len(shapes))


def raw_erk(shape):
    return sum(shape) / math.prod(shape)


def raw_er(shape):
    return sum(shape[-2:]) / math.prod(shape[-2:])


# --- worked numbers ------------------------------------------------------------------------------

TOY = ((3, 3, 3, 8), (3, 3, 8, 16), (16, 10))
LENET = ((784, 300), (300, 100), (100, 10))


@pytest.mark.parametrize(
    ("density", "expected"),
    [
        (0.1, [0.1647, 0.0545, 0.3401]),
        (0.2, [0.3295, 0.1090, 0.6803]),
        (0.3, [0.4997, 0.1653, 1.0]),
        (0.5, [1.0, 0.3368, 1.0]),
    ],
)
def test_erk_of_the_toy_network(density, expected):
    np.testing.assert_allclose(densities(jp.erk, TOY, density), expected, atol=5e-5)


def test_erk_of_the_toy_network_by_hand():
    # the last layer dense: eps = (.3 * 1528 - 160) / (17 + 30) = 6.3489, for the raw scores times
    # the sizes are the sums of the axes, 3 + 3 + 3 + 8 and 3 + 3 + 8 + 16
    eps = (0.3 * (216 + 1152 + 160) - 160) / (17 + 30)
    assert eps == pytest.approx(6.3489, abs=5e-5)
    assert densities(jp.erk, TOY, 0.3) == pytest.approx([eps * 17 / 216, eps * 30 / 1152, 1])


def test_er_of_the_toy_network_by_hand():
    # The card prints .2172, .2172, .0529, which takes the first two axes, 3 x 3 of both kernels,
    # for fan-in and fan-out. Its text says that ER reads only cin and cout: the last two.
    raw = [11 / 24, 24 / 128, 26 / 160]  # (3 + 8) / (3 * 8), (8 + 16) / (8 * 16), 26 / 160
    eps = 0.2 * 1528 / (raw[0] * 216 + raw[1] * 1152 + raw[2] * 160)  # 305.6 / 341 = .8962
    expected = [eps * r for r in raw]
    assert expected == pytest.approx([0.4108, 0.1680, 0.1456], abs=5e-5)
    assert densities(jp.er, TOY, 0.2) == pytest.approx(expected)
    # the numbers of the card, to show where they come from
    raw_first = [6 / 9, 6 / 9, 26 / 160]
    eps_first = 0.2 * 1528 / (raw_first[0] * 216 + raw_first[1] * 1152 + raw_first[2] * 160)
    assert [eps_first * r for r in raw_first] == pytest.approx([0.2172, 0.2172, 0.0529], abs=5e-5)


@pytest.mark.parametrize(
    ("density", "expected"),
    [
        (0.1, [0.0796, 0.2302, 1.0]),
        (0.05, [0.0385, 0.1113, 0.9185]),
        (0.02, [0.0154, 0.0445, 0.3674]),
    ],
)
@pytest.mark.parametrize("allocation", [jp.erk, jp.er])  # the same for matrices
def test_erk_of_lenet_300_100(allocation, density, expected):
    np.testing.assert_allclose(densities(allocation, LENET, density), expected, atol=5e-5)


def resnet20():
    """The kernels of ResNet-20 for CIFAR-10 without shortcut convolutions, in order."""
    shapes, names, c_in = [(3, 3, 3, 16)], ["conv1"], 16
    for stage, c_out in enumerate((16, 32, 64), 1):
        for block in range(1, 4):
            for conv in (1, 2):
                shapes.append((3, 3, c_in, c_out))
                names.append(f"s{stage}b{block}c{conv}")
                c_in = c_out
    return dict(zip([*names, "fc"], [*shapes, (64, 10)], strict=True))


@pytest.mark.parametrize(
    ("density", "conv1", "s1", "s2b1c1", "s2", "s3b1c1", "s3", "fc"),
    [
        (0.1, 1.0, 0.3026, 0.2150, 0.1394, 0.1015, 0.0667, 1.0),
        (0.05, 0.5174, 0.1475, 0.1048, 0.0679, 0.0495, 0.0325, 1.0),
    ],
)
def test_erk_of_resnet20(density, conv1, s1, s2b1c1, s2, s3b1c1, s3, fc):
    network = resnet20()
    assert sum(math.prod(s) for s in network.values()) == 268_336
    found = dict(zip(network, densities(jp.erk, network.values(), density), strict=True))
    stages = {"s1": s1, "s2": s2, "s3": s3}
    expected = {"conv1": conv1, "s2b1c1": s2b1c1, "s3b1c1": s3b1c1, "fc": fc}
    for name, value in found.items():
        assert value == pytest.approx(expected.get(name, stages.get(name[:2])), abs=5e-5), name


def resnet50():
    """The kernels of ResNet-50 for ImageNet, shortcut convolutions included, in order."""
    network, c_in = {"conv1": (7, 7, 3, 64)}, 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
        for block in range(1, blocks + 1):
            name = f"s{stage}b{block}"
            network[f"{name}_1x1a"] = (1, 1, c_in, width)
            network[f"{name}_3x3"] = (3, 3, width, width)
            network[f"{name}_1x1b"] = (1, 1, width, 4 * width)
            if block == 1:
                network[f"{name}_shortcut"] = (1, 1, c_in, 4 * width)
            c_in = 4 * width
    return {**network, "fc": (2048, 1000)}


@pytest.mark.parametrize(
    ("density", "expected"),
    [
        (
            0.1,
            {
                "conv1": 0.4200, "s1b1_1x1a": 1.0, "s1b1_3x3": 0.1773, "s1b1_1x1b": 0.9588,
                "s4b1_1x1a": 0.1431, "s4b2_3x3": 0.0213, "s4b1_1x1b": 0.1192, "fc": 0.0726,
            },
        ),
        (
            0.2,
            {
                "conv1": 0.8572, "s1b1_1x1a": 1.0, "s1b2_1x1a": 1.0, "s1b3_1x1a": 1.0,
                "s1b1_1x1b": 1.0, "s1b3_1x1b": 1.0, "s1b1_shortcut": 1.0, "s2b1_1x1a": 1.0,
                "s4b1_3x3": 0.0435, "fc": 0.1482,
            },
        ),
    ],
)  # fmt: skip
def test_erk_of_resnet50(density, expected):
    network = resnet50()
    assert sum(math.prod(s) for s in network.values()) == 25_502_912
    found = dict(zip(network, densities(jp.erk, network.values(), density), strict=True))
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=5e-5), name


def test_er_and_erk_of_attention_are_those_of_its_matrices():
    # 64 inputs, 4 heads of 16; the MLP is four times as wide
    attn = {k: {"kernel": jnp.ones((64, 4, 16))} for k in ("query", "key", "value")}
    attn["out"] = {"kernel": jnp.ones((4, 16, 64))}
    mlp = [jnp.ones((64, 256)), jnp.ones((256, 64))]
    # raw densities (64 + 64) / 64^2 = 1/32 and (64 + 256) / (64 * 256) = 5/256; a tenth of 49,152
    # weights is eps * (4 * 128 + 2 * 320), so that eps = 4.2667
    eps = 4915.2 / 1152
    for allocation in (jp.er, jp.erk):
        found = allocation({"attn": attn, "mlp": mlp}, 0.9)
        assert found["attn"]["query"]["kernel"] == pytest.approx(1 - eps / 32)  # .867
        assert found["attn"]["out"]["kernel"] == pytest.approx(1 - eps / 32)
        assert found["mlp"][0] == pytest.approx(1 - eps * 5 / 256)  # .917


@pytest.mark.parametrize("allocation", [jp.er, jp.erk])
def test_er_of_a_kernel_whose_inputs_can_not_be_known_names_it(allocation):
    scores = {"stem": {"kernel": jnp.ones((3, 8, 16))}, "head": jnp.ones((16, 4))}
    with pytest.raises(ValueError, match=r"which axes of 'stem/kernel', shape \(3, 8, 16\)"):
        allocation(scores, 0.5)
    said = jp.matching(layouts={"stem/kernel": jp.Layout(inputs=1, outputs=2)})(scores)
    by_name = {"Conv_0": scores["stem"], "head": scores["head"]}
    assert jax.tree.leaves(allocation(said, 0.5)) == pytest.approx(
        [allocation(by_name, 0.5)[k] for k in ("head",)]
        + [allocation(by_name, 0.5)["Conv_0"]["kernel"]]
    )


# --- laws of er and erk --------------------------------------------------------------------------

NETWORKS = {
    "toy": TOY,
    "lenet": LENET,
    "resnet20": tuple(resnet20().values()),
    "resnet50": tuple(resnet50().values()),
    "twins": ((4, 4), (4, 4), (50, 60), (7, 7, 20, 30)),
    "one": ((20, 30),),
    "vectors": ((64,), (64,), (30, 40)),
    "an empty leaf": ((0, 3), (30, 40), (5, 6)),
}
DENSITIES = (0.001, 0.02, 0.1, 0.3, 0.5, 0.77, 0.9, 0.99, 1.0)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("allocation", "raw"), [(jp.er, raw_er), (jp.erk, raw_erk)])
def test_closed_form_equals_the_loop_and_meets_the_budget(allocation, raw, name):
    shapes = NETWORKS[name]
    sizes = np.array([math.prod(s) for s in shapes])
    for density in DENSITIES:
        found = np.array(densities(allocation, shapes, density))
        assert (found >= 0).all() and (found <= 1).all()
        assert found[sizes > 0] @ sizes[sizes > 0] == pytest.approx(density * sizes.sum(), rel=1e-9)
        if name != "an empty leaf":
            np.testing.assert_allclose(found, by_the_loop(shapes, density, raw), rtol=1e-9)


def test_tied_maxima_go_dense_together():
    shapes = ((4, 4), (4, 4), (50, 60))
    for density in np.linspace(0.005, 1, 200):
        first, second, third = densities(jp.erk, shapes, density)
        assert first == second and third <= first
    # eps * 8 / 16 = 1 from eps = 2 on, where (8 + 8 + 110) * 2 = 252 of 3032 weights are kept
    assert densities(jp.erk, shapes, 251 / 3032)[0] < 1
    assert densities(jp.erk, shapes, 253 / 3032) == pytest.approx([1, 1, (253 - 32) / 3000])


def test_density_grows_with_the_budget_in_every_layer():
    grid = np.array([densities(jp.erk, NETWORKS["resnet20"], d) for d in np.linspace(0, 1, 101)])
    assert (np.diff(grid, axis=0) >= -1e-12).all()


def test_python_in_python_out_also_under_jit():
    kinds = []

    @jax.jit
    def f(w):
        for allocation in (jp.uniform, jp.er, jp.erk):
            kinds.extend(type(s) for s in jax.tree.leaves(allocation({"a": w, "b": w}, 0.5)))
        return w

    f(jnp.ones((4, 5)))
    assert kinds == [float] * 6


# resnet50 compiles long
@pytest.mark.parametrize("name", quick(sorted(set(NETWORKS) - {"resnet50"})))
@pytest.mark.parametrize("allocation", [jp.er, jp.erk])
def test_traced_equals_static(allocation, name):
    scores = shapes_as_scores(*NETWORKS[name])
    grid = jnp.array([0.0, 0.1, 0.35, 0.5, 0.8, 0.9, 0.95, 0.98, *np.linspace(0.0035, 0.9965, 332)])
    # a schedule of sparsities in one call
    traced = jax.jit(jax.vmap(lambda s: allocation(scores, s)))(grid)
    for i, sparsity in enumerate(grid.tolist()):
        static = allocation(scores, round(sparsity, 7))  # float32 is read so
        for key, value in static.items():
            n = count(value, math.prod(scores[key].shape))
            assert int(jnp.asarray(traced[key])[i]) == n, (key, sparsity)


def test_a_concrete_array_equals_a_python_number():
    scores = shapes_as_scores(*TOY)
    for sparsity in (jnp.float32(0.7), np.float32(0.7)):
        for key, value in jp.erk(scores, 0.7).items():
            n = count(value, math.prod(scores[key].shape))
            assert int(jp.erk(scores, sparsity)[key]) == n


SQUARES = {
    "a": jnp.arange(100.0).reshape(10, 10),
    "b": jnp.arange(300.0).reshape(30, 10),
    "c": None,
}


@pytest.mark.full
@pytest.mark.parametrize("kind", [int, np.int64, np.int32, jnp.int32, lambda n: jnp.array(n)])
def test_an_integer_is_a_number_of_weights_of_all_leaves_together(kind):
    pruned = lambda allocation, n: {
        path: int((~mask).sum())
        for path, mask in jp.select(SQUARES, allocation, kind(n)).items()
        if mask is not None
    }
    assert pruned(jp.uniform, 20) == {"a": 5, "b": 15}
    assert pruned(jp.global_threshold, 21) == {"a": 10, "b": 11}  # of 0 to 10 one is kept in a
    # densities 0.2 and 40/300 times eps: of 400 weights 40 kept = eps * (20 + 40)
    assert pruned(jp.erk, 360) == {"a": 87, "b": 273}
    assert pruned(jp.per_layer({"a": kind(7)}), 30) == {"a": 7, "b": 30}
    assert pruned(jp.per_layer({"a": kind(7)}, compensate=True), 30) == {"a": 7, "b": 23}
    assert pruned(jp.per_layer({"a": 0.07}, compensate=True), 30) == {"a": 7, "b": 23}
    assert pruned(jp.per_layer({"a": lambda s: s / 2}), 40) == {"a": 5, "b": 40}  # s = 0.1


def test_a_traced_integer_is_the_number_that_it_is():
    curves = {"a": np.linspace(0, 1, 11) ** 2, "b": np.linspace(0, 1, 6) ** 3}
    common = jp.allocation.common_slope(curves)
    for allocation in (
        jp.uniform,
        jp.erk,
        jp.global_threshold,
        jp.allocation.erk_plus("b"),
        common,
    ):
        traced = jax.jit(lambda n, a=allocation: jp.select(SQUARES, a, n))
        for n in (0, 1, 37, 99):
            static = jp.select(SQUARES, allocation, n)
            assert all(map(np.array_equal, jax.tree.leaves(traced(n)), jax.tree.leaves(static)))


def test_an_integer_that_leaves_nothing_is_refused():
    for n, fragment in ((400, "how many weights of 400 are pruned"), (-1, "got -1.")):
        with pytest.raises(ValueError) as error:
            jp.select(SQUARES, jp.uniform, n)
        assert fragment in str(error.value)
    with pytest.raises(ValueError, match="how many weights of 100 are pruned"):
        jp.per_layer({"a": 100})(SQUARES, 0.5)


def test_holes_stay_holes():
    scores = {"a": jnp.ones((4, 5)), "b": None}
    for allocation in (jp.uniform, jp.er, jp.erk, jp.global_threshold, jp.per_layer({"a": 0.5})):
        assert allocation(scores, 0.5)["b"] is None


def test_uniform_hands_on_what_it_is_given():
    assert jp.uniform({"a": jnp.ones(3), "b": None}, 0.9) == {"a": 0.9, "b": None}


def test_a_scalar_leaf_is_not_pruned_first():
    # its one weight is all there is of it: as dense as a vector
    scores = shapes_as_scores((), (50, 60))
    assert jp.erk(scores, 0.5)["layer_00"] == 0


@pytest.mark.parametrize("allocation", [jp.er, jp.erk])
def test_nothing_but_empty_leaves(allocation):
    (sparsity,) = allocation(shapes_as_scores((0, 3)), 0.5).values()
    assert 0 <= sparsity <= 1


# --- global threshold ----------------------------------------------------------------------------


def test_global_threshold_counts_by_hand():
    scores = {"a": jnp.array([[9.0, 1.0, 4.0]]), "b": jnp.array([[8.0, 2.0]]), "c": None}
    pruned = jp.global_threshold(scores, 0.6)  # keeps 9 and 8
    assert {k: v if v is None else int(v) for k, v in pruned.items()} == {"a": 2, "b": 1, "c": None}
    assert pruned["a"].dtype == jnp.int32


def test_global_threshold_sums_exactly_and_keeps_the_earlier_among_equals():
    scores = {"a": jnp.ones((3, 4)), "b": jnp.ones((5, 2)), "c": jnp.ones((0, 2)), "d": jnp.ones(7)}
    for sparsity in (0.0, 0.1, 0.5, 0.8, 0.99):
        pruned = [int(n) for n in jp.global_threshold(scores, sparsity).values()]
        assert sum(pruned) == round(sparsity * 29)
    assert [int(n) for n in jp.global_threshold(scores, 20 / 29).values()] == [3, 10, 0, 7]


def test_global_threshold_traced_equals_static():
    keys = jax.random.split(jax.random.key(0), 2)
    scores = {"a": jax.random.normal(keys[0], (9, 11)), "b": jax.random.normal(keys[1], (31,))}
    traced = jax.jit(jp.global_threshold)
    for sparsity in (0.0, 0.3, 0.9, 0.99):
        static = jp.global_threshold(scores, sparsity)
        assert jax.tree.map(int, traced(scores, sparsity)) == jax.tree.map(int, static)


# --- per layer -----------------------------------------------------------------------------------

LAYERS = {
    "body": {"conv": jnp.ones((3, 3, 4, 8)), "dense": jnp.ones((20, 30))},
    "head": {"dense": jnp.ones((30, 10)), "bias": None},
}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("body/conv", (0.5, 0.9, 0.9)),
        ("body/*", (0.5, 0.5, 0.9)),
        ("*/dense", (0.9, 0.5, 0.5)),
        (re.compile("^head"), (0.9, 0.9, 0.5)),
        (re.compile("ens"), (0.9, 0.5, 0.5)),
        (lambda name, leaf: leaf.ndim == 4, (0.5, 0.9, 0.9)),
        (lambda name, leaf: name.endswith("dense"), (0.9, 0.5, 0.5)),
    ],
)
def test_per_layer_takes_rules_of_every_kind(rule, expected):
    sparsities = jp.per_layer({rule: 0.5})(LAYERS, 0.9)
    assert (sparsities["body"]["conv"], sparsities["body"]["dense"]) == expected[:2]
    assert sparsities["head"] == {"dense": expected[2], "bias": None}


def test_per_layer_the_first_rule_that_matches_decides():
    first = jp.per_layer({"body/conv": 0.1, "body/*": 0.2, "*": 0.3})(LAYERS, 0.9)
    assert first["body"] == {"conv": 0.1, "dense": 0.2} and first["head"]["dense"] == 0.3
    other = jp.per_layer({"*": 0.3, "body/*": 0.2, "body/conv": 0.1})(LAYERS, 0.9)
    assert other["body"] == {"conv": 0.3, "dense": 0.3} and other["head"]["dense"] == 0.3


def test_per_layer_the_rest_is_allocated_among_itself():
    sparsities = jp.per_layer({"head/*": 0.0}, rest=jp.erk)(LAYERS, 0.9)
    alone = jp.erk(LAYERS["body"], 0.9)
    assert sparsities["body"] == alone and sparsities["head"]["dense"] == 0.0
    assert sparsities["body"]["conv"] != sparsities["body"]["dense"]


def test_per_layer_with_a_global_threshold_for_the_rest():
    scores = {"a": jnp.array([1.0, 4.0]), "b": jnp.array([3.0, 2.0]), "c": jnp.array([0.0, 9.0])}
    masks = jp.select(scores, jp.per_layer({"c": 0.0}, rest=jp.global_threshold), 0.25)
    assert {k: m.tolist() for k, m in masks.items()} == {
        "a": [False, True], "b": [True, True], "c": [True, True]
    }  # fmt: skip


def test_per_layer_with_a_function_of_the_sparsity():
    allocation = jp.per_layer({"head/*": lambda s: s / 2})
    assert allocation(LAYERS, 0.9)["head"]["dense"] == 0.45
    traced = jax.jit(lambda s: allocation(LAYERS, s))(0.8)
    assert float(traced["head"]["dense"]) == pytest.approx(0.4)
    assert float(traced["body"]["conv"]) == pytest.approx(0.8)


def test_per_layer_where_rules_cover_all():
    assert jp.per_layer({"*": 0.25})({"a": jnp.ones(4)}, 0.9) == {"a": 0.25}


@pytest.mark.parametrize(
    "rule", ["tail/*", re.compile("tail"), lambda name, leaf: False, "head/bias"]
)
def test_per_layer_an_unmatched_rule_is_named_with_the_leaves(rule):
    # head/bias is there, but never pruned
    allocation = jp.per_layer({"body/*": 0.5, rule: 0.1})
    with pytest.raises(ValueError) as error:
        allocation(LAYERS, 0.9)
    assert f"the rule {rule!r} matches no leaf" in str(error.value)
    assert "'body/conv', 'body/dense', 'head/dense'" in str(error.value)


@pytest.mark.parametrize(
    ("sparsity", "kind"),
    [(-90, ValueError), (1.0, ValueError), ("x", TypeError), (True, TypeError)],
)
def test_per_layer_checks_its_numbers_at_once(sparsity, kind):
    with pytest.raises(kind, match="sparsity"):
        jp.per_layer({"body/*": sparsity})


def test_per_layer_checks_its_functions_when_they_are_called():
    with pytest.raises(ValueError, match=r"in \[0, 1\); got 1\.8"):
        jp.per_layer({"body/*": lambda s: 2 * s})(LAYERS, 0.9)


def test_per_layer_writes_no_scores():
    # it reads names and shapes, as its parts do
    params = {"a": jnp.ones((256, 512)), "b": jnp.ones((256, 512))}

    def masks(p):
        return jp.select(defer(jp.magnitude, p), jp.per_layer({"a": 0.5}, rest=jp.erk), 0.9)

    temporary = jax.jit(masks).lower(params).compile().memory_analysis().temp_size_in_bytes
    assert temporary < params["a"].nbytes / 10


# --- rules whose leaves the others make up for ---------------------------------------------------


def as_params(network):
    return {path: jnp.broadcast_to(jnp.float32(0), shape) for path, shape in network.items()}


def budget(sparsities, params):
    """How many weights are kept of all, as a float."""
    return sum((1 - s) * params[path].size for path, s in sparsities.items())


def test_uniform_plus_of_resnet20():
    # .1 N = 432 + 128 + d (N - 1,072): the first dense, a fifth of the last, .0983 of the others
    params = as_params(resnet20())
    found = jp.allocation.uniform_plus("conv1", "fc")(params, 0.9)
    assert 1 - found["conv1"] == 1
    assert 1 - found["fc"] == pytest.approx(0.2)
    others = {round(1 - s, 4) for path, s in found.items() if path not in ("conv1", "fc")}
    assert others == {0.0983}
    assert budget(found, params) == pytest.approx(0.1 * 268_336)


def test_uniform_plus_keeps_more_of_the_last_layer_where_all_keep_more():
    params = as_params(resnet20())
    found = jp.allocation.uniform_plus("conv1", "fc")(params, 0.5)
    assert found["fc"] == 0.5
    assert budget(found, params) == pytest.approx(0.5 * 268_336)


@pytest.mark.parametrize("own", [0.0, 0.5])
def test_erk_plus(own):
    params = as_params(resnet20())
    found = jp.allocation.erk_plus("fc", own)(params, 0.9)
    assert found["fc"] == own
    assert budget(found, params) == pytest.approx(0.1 * 268_336)
    # erk among the others, at d' = (d N - N_fc d_fc) / (N - N_fc)
    rest = {path: w for path, w in params.items() if path != "fc"}
    density = (0.1 * 268_336 - 640 * (1 - own)) / (268_336 - 640)
    for path, sparsity in jp.erk(rest, 1 - density).items():
        assert found[path] == pytest.approx(sparsity, abs=1e-9), path


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9])
def test_compensation_of_a_traced_sparsity_equals_that_of_a_number(sparsity):
    params = as_params(resnet20())
    for allocation in (jp.allocation.uniform_plus("conv1", "fc"), jp.allocation.erk_plus("fc")):
        traced = jax.jit(lambda s, allocation=allocation: allocation(params, s))(sparsity)
        for path, own in allocation(params, sparsity).items():
            size = params[path].size
            assert int(count(traced[path], size)) == count(own, size)


def test_compensation_of_a_traced_sparsity_that_can_not_be_prunes_nothing():
    """Where it is known it is refused. A 1 would prune all of the rest, for good."""
    scores = {"big": jnp.ones(90), "small": jnp.ones(10)}
    for own, sparsity, small in ((0.0, 0.9, 0.0), (0.0, 0.05, 0.5), (0.9, 0.1, 0.0)):
        traced = jax.jit(jp.per_layer({"big": own}, compensate=True))(scores, sparsity)
        assert float(traced["small"]) == pytest.approx(small, rel=1e-6)


@pytest.mark.parametrize(
    "make", [lambda a, s: jp.prune(jp.magnitude, a, s), lambda a, s: jp.dpf(s, a)]
)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_schedule_that_the_others_can_not_make_up_for_is_refused(make, wrap):
    """Else the last updates would empty every other layer, without a word."""
    params = {"big": jnp.ones((9, 10)), "small": jnp.ones((2, 5))}
    allocation = jp.per_layer({"big": 0.5}, compensate=True)
    with pytest.raises(ValueError, match=r"45 of 90 weights pruned.*to sparsity 0\.9: .*need 4\.5"):
        wrap(make(allocation, optax.linear_schedule(0.0, 0.9, 3)).init)(params)
    wrap(make(allocation, optax.linear_schedule(0.0, 0.54, 3)).init)(params)


@pytest.mark.parametrize(
    ("rules", "sparsity", "needs"),
    # of 100 weights 90 are big: 90 - 0 of the 10 small ones, or 10 - 81
    [({"big": 0.0}, 0.9, "9"), ({"big": 0.9}, 0.1, "-7.1")],
)
def test_the_others_cannot_make_up_for_it(rules, sparsity, needs):
    params = {"big": jnp.ones((9, 10)), "small": jnp.ones((2, 5))}
    allocation = jp.per_layer(rules, compensate=True)
    with pytest.raises(ValueError, match=f"can't make up.*they would need {needs}\\.") as error:
        allocation(params, sparsity)
    assert "compensate=False" in str(error.value)


def test_uniform_plus_with_a_mistyped_rule():
    with pytest.raises(ValueError, match="the rule 'Conv_9' matches no leaf"):
        jp.allocation.uniform_plus("Conv_9", "fc")(as_params(resnet20()), 0.9)


# --- borrowed ratios -----------------------------------------------------------------------------


def test_borrowed_sparsities_are_those_of_the_other_scores():
    other = {"a": jnp.arange(10.0).reshape(2, 5), "b": 100 + jnp.arange(10.0).reshape(5, 2)}
    own = jax.tree.map(jnp.zeros_like, other)
    found = jp.allocation.like(other)(own, 0.5)
    assert [int(n) for n in found.values()] == [10, 0]
    found = jp.allocation.like(other, jp.uniform)(own, 0.5)
    assert list(found.values()) == [0.5, 0.5]


def test_borrowing_from_scores_of_more_leaves():
    other = {"a": jnp.ones((2, 5)), "bias": jnp.ones(5)}
    assert jp.allocation.like(other, jp.uniform)({"a": jnp.ones((2, 5)), "bias": None}, 0.5) == {
        "a": 0.5,
        "bias": None,
    }


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"a": jnp.ones((5, 2))}, r"'a' has shape \(5, 2\), wanted \(2, 5\)"),
        ({}, "missing: 'a'"),
    ],
)
def test_borrowing_from_scores_of_other_params(other, said):
    with pytest.raises(
        ValueError, match=rf"allocation.like: the scores .* like the params: {said}"
    ):
        jp.allocation.like(other)({"a": jnp.ones((2, 5))}, 0.5)


def test_the_rest_may_be_a_number():
    scores = {"a": jnp.ones((2, 5)), "b": jnp.ones((5, 2)), "c": None}
    allocation = jp.per_layer({"a": 0.5}, rest=0)
    assert allocation(scores, 0.9) == {"a": 0.5, "b": 0, "c": None}
    assert float(jp.sparsity({"b": jp.select(scores, allocation, 0.9)["b"]})) == 0


def test_a_rest_that_is_no_sparsity():
    with pytest.raises(ValueError, match=r"in \[0, 1\); got 1.5"):
        jp.per_layer({"a": 0.5}, rest=1.5)
    with pytest.raises(TypeError, match="has no fixed sparsity"):
        jp.per_layer({"a": 0.5}, rest=0.5, compensate=True)
