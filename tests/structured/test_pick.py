"""Which neurons are kept: exact counts, at least one of each group, budgets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.programs.flops import count_flops
from tests.coupling.networks import NETWORKS, built
from tests.coupling.test_analyze import weights
from tests.coupling.test_stated import raised

PARAMS = weights(a=(4, 8), b=(8, 64), c=(64, 2))
FN = lambda p, x: jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]
STRUCTURE = jp.analyze(FN, PARAMS, jnp.ones((1, 4)))
SCORES = {"a": jnp.arange(8.0), "b": 100 + jnp.arange(64.0)}


def counts(kept):
    return [int(own.sum()) for own in kept.values()]


@pytest.mark.full
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.95])
def test_counts_are_exact(sparsity):
    kept = jp.pick(STRUCTURE, SCORES, sparsity)
    assert sum(counts(kept)) == 72 - round(sparsity * 72)
    under_jit = jax.jit(lambda s: jp.pick(STRUCTURE, SCORES, s))(sparsity)
    jax.tree.map(np.testing.assert_array_equal, under_jit, kept)


def test_an_integer_is_how_many_neurons_are_pruned():
    assert sum(counts(jp.pick(STRUCTURE, SCORES, 30))) == 72 - 30
    said = raised(lambda: jp.pick(STRUCTURE, SCORES, 72))
    assert "an integer sparsity is how many neurons of 72 are pruned" in said


def test_globally_the_lowest_go_but_one_of_each_group_stays():
    kept = jp.pick(STRUCTURE, SCORES, 0.5)
    assert kept["a"].tolist() == [False] * 7 + [True]
    assert kept["b"].tolist() == [False] * 29 + [True] * 35
    nothing = jp.pick(STRUCTURE, {"a": jnp.zeros(8), "b": jnp.zeros(64)}, 0.999)
    assert counts(nothing) == [1, 1] and nothing["a"][0]  # among equals the first


def test_locally_each_group_loses_its_share():
    assert counts(jp.pick(STRUCTURE, SCORES, 0.75, jp.uniform)) == [2, 16]
    rules = jp.per_layer({"a": 0.25}, rest=jp.uniform)
    assert counts(jp.pick(STRUCTURE, SCORES, 0.75, rules)) == [6, 16]
    assert counts(jp.pick(STRUCTURE, SCORES, 0.99, jp.uniform)) == [1, 1]


def test_only_the_groups_that_are_named_lose_neurons():
    """A sparsity is theirs, a budget the network's; scores of the others are not asked for."""
    assert counts(jp.pick(STRUCTURE, SCORES, 0.5, groups=["b"])) == [8, 32]
    assert counts(jp.pick(STRUCTURE, {"b": SCORES["b"]}, 0.5, groups=["b*"])) == [8, 32]
    kept = jp.pick(STRUCTURE, SCORES, None, groups=["b"], weights=0.5)  # 32 + 8 b + 2 b <= 336
    assert counts(kept) == [8, 30]
    kept = jp.pick(STRUCTURE, SCORES, measure=lambda k: k["b"].sum(), at_most=9, groups=["b"])
    assert counts(kept) == [8, 9]
    pools = jp.structured.isomorphic(STRUCTURE)
    assert counts(jp.pick(STRUCTURE, SCORES, 0.5, pools, groups=["a"])) == [4, 64]
    said = raised(lambda: jp.pick(STRUCTURE, SCORES, 0.5, groups=["*.heads"]))
    assert "'*.heads' matches no group; the groups are 'a', 'b'." in said
    said = raised(lambda: jp.pick(STRUCTURE, SCORES, 0.5, groups="a"), TypeError)
    assert "groups is a list of names or globs, such as [\"*.heads\"]; got 'a'" in said


@pytest.mark.full
def test_heads_are_pruned_as_such():
    variables, x = built("grouped queries")
    fn = NETWORKS["grouped queries"].module.apply
    structure = jp.analyze(fn, variables, x)
    kept = jp.pick(
        structure, jp.structured.per_group(structure)(variables), 0.5, groups=["*.heads"]
    )
    heads = {name: int(own.sum()) for name, own in kept.items() if name.endswith(".heads")}
    assert sum(heads.values()) == 2 and len(heads) == 2
    assert all(own.all() for name, own in kept.items() if name not in heads)
    small = jp.compact(structure, variables, kept)
    assert small.params["params"]["CheckpointBlock_0"]["DenseGeneral_1"]["kernel"].shape == (
        8,
        1,
        4,
    )


def test_rounding():
    # of 64, 27 pruned: 37 are left, and 32 of them kept
    rules = jp.per_layer({"b": 27 / 64, "a": 0.0})
    assert counts(jp.pick(STRUCTURE, SCORES, 0.5, rules, round_to=8)) == [8, 32]
    assert counts(jp.pick(STRUCTURE, SCORES, 0.95, jp.uniform, round_to=8)) == [8, 8]
    assert counts(jp.pick(STRUCTURE, SCORES, 0.5, jp.uniform, round_to=3)) == [3, 30]


def test_a_group_that_loses_none_keeps_its_size():
    """64 is no multiple of 5, nor 8; of b a quarter goes, 48 are left, and 45 of them kept."""
    rules = jp.per_layer({"a": 0.0, "b": 0.25})
    assert counts(jp.pick(STRUCTURE, SCORES, 0.25, rules, round_to=5)) == [8, 45]
    assert counts(jp.pick(STRUCTURE, SCORES, 0.0, round_to=5)) == [8, 64]


def test_nan_scores_are_kept_and_seen():
    scores = {**SCORES, "a": SCORES["a"].at[2].set(jnp.nan)}
    assert jp.pick(STRUCTURE, scores, 0.5)["a"].tolist() == [False, False, True] + [False] * 5


@pytest.mark.full
@pytest.mark.parametrize("what", ["weights", "flops"])
@pytest.mark.parametrize("budget", [1.0, 0.5, 0.1])
def test_budgets_are_met_and_no_more(what, budget):
    variables, x = built("batch norm")
    fn = NETWORKS["batch norm"].module.apply
    structure = jp.analyze(fn, variables, x)
    scores = jp.structured.normalized(jp.structured.per_group(structure))(variables)
    kept = jp.pick(structure, scores, **{what: budget})
    dense, left = (
        getattr(c, what)
        for c in (jp.structured.cost(structure), jp.structured.cost(structure, kept))
    )
    assert left <= budget * dense
    one_less = 1 - (sum(counts(kept)) + 1) / 12
    if budget < 1:
        more = jp.pick(structure, scores, one_less)
        assert getattr(jp.structured.cost(structure, more), what) > budget * dense


@pytest.mark.parametrize("flip", [1, -1])
def test_what_rounding_left_over_goes_to_the_best_of_all(flip):
    """Twins of 16, in multiples of 4: the better gets what is left over, and its next best."""
    params = weights(u=(4, 16), v=(4, 16), x=(16, 2), y=(16, 2))
    fn = lambda p, x: jnp.tanh(x @ p["u"]) @ p["x"] + jnp.tanh(x @ p["v"]) @ p["y"]
    structure = jp.analyze(fn, params, jnp.ones((1, 4)))
    for better in "uv":
        scores = {name: flip * jnp.arange(16.0) + (name == better) * 1e-3 for name in "uv"}
        kept = jp.pick(structure, scores, None, jp.uniform, weights=22 / 32, round_to=4)
        # 22 neurons may be left: 8 and 8, and a multiple for the better
        for name, own in kept.items():
            best = np.arange(16)[::-flip][: 12 if name == better else 8]
            assert np.flatnonzero(own).tolist() == sorted(best.tolist())


def test_a_rounded_budget_is_filled():
    kept = jp.pick(STRUCTURE, SCORES, flops=0.5, round_to=8)
    assert counts(kept) == [8, 24]  # 4 a + a b + 2 b <= 0.5 * 672: with 32 it would be 352
    assert list(kept) == list(STRUCTURE.groups)
    kept = jp.pick(STRUCTURE, SCORES, flops=0.7, round_to=4)
    dense, left = jp.structured.cost(STRUCTURE).flops, jp.structured.cost(STRUCTURE, kept).flops
    assert left <= 0.7 * dense and all(n % 4 == 0 for n in counts(kept))
    for name in kept:
        more = dict(kept) | {name: jnp.arange(kept[name].size) < kept[name].sum() + 4}
        assert more[name].all() or jp.structured.cost(STRUCTURE, more).flops > 0.7 * dense


@pytest.mark.parametrize("round_to", [1, 4])
def test_a_budget_of_bit_operations_is_met_and_no_more(round_to):
    left = lambda kept: jp.structured.bops(STRUCTURE, kept, bits=(4, 8))
    kept = jp.pick(STRUCTURE, SCORES, bops=0.5, bits=(4, 8), round_to=round_to)
    assert left(kept) <= 0.5 * left(None)
    assert all(n % round_to == 0 for n in counts(kept))
    # by hand: 4 a, a b and 2 b products; their sums have 4, a and b terms
    a, b = counts(kept)
    terms = [(4 * a, 4), (a * b, a), (2 * b, b)]
    assert left(kept) == pytest.approx(sum(n * (32 + 12 + np.log2(k)) for n, k in terms))
    for name in kept:
        more = dict(kept) | {name: jnp.arange(kept[name].size) < kept[name].sum() + round_to}
        assert more[name].all() or left(more) > 0.5 * left(None)


@pytest.mark.parametrize("round_to", [1, 4])
def test_any_cost_can_be_bounded_by_measuring_it(round_to):
    asked = []

    def seconds(kept):
        asked.append(kept)
        return 1e-3 * jp.structured.cost(STRUCTURE, kept).weights

    kept = jp.pick(STRUCTURE, SCORES, measure=seconds, at_most=0.336, round_to=round_to)
    as_share = jp.pick(STRUCTURE, SCORES, weights=0.5, round_to=round_to)  # of 672
    jax.tree.map(np.testing.assert_array_equal, kept, as_share)
    assert any(all((k[g] == kept[g]).all() for g in kept) for k in asked)  # it was seen to fit
    assert len(asked) <= 9 + 4 + (round_to > 1) * 10


def test_a_cost_may_rise_again_where_little_is_left():
    u_shaped = lambda kept: abs(sum(counts(kept)) - 20)
    assert sum(counts(jp.pick(STRUCTURE, SCORES, measure=u_shaped, at_most=10))) == 30


def test_a_stack_of_budgets_compiles_once():
    events, counts = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: events.append(event)
    )
    for seed in range(3):
        scores = {n: jax.random.uniform(jax.random.key(seed), s.shape) for n, s in SCORES.items()}
        jp.pick(STRUCTURE, scores, None, jp.uniform, flops=0.5, round_to=3)
        counts.append(len(events))
    assert 0 < counts[0] == counts[1] == counts[2]


def test_cost_is_what_is_counted_on_the_small_function():
    for name in ("separable", "scan", "unet", "fused heads"):
        variables, x = built(name)
        fn = NETWORKS[name].module.apply
        counted = count_flops(fn, variables, x)
        dense = jp.structured.cost(jp.analyze(fn, variables, x))
        assert dense.flops == sum(counted.leaves.values()) + counted.other
        assert dense.weights == sum(w.size for w in jax.tree.leaves(variables))


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({}, "needs one of sparsity (pruned), weights, flops and bops (left), and measure"),
        ({"bops": 0.5}, "bops and bits go together, as in bops=0.25, bits=(4, 8), which are"),
        ({"bits": 8, "sparsity": 0.5}, "got only bits"),
        ({"bops": 0.01, "bits": 8}, "bops=0.01 can't be met: with one neuron left in each"),
        ({"bops": 0.5, "bits": 0}, "the bits of weights are of [1, 64]; got 0."),
        ({"sparsity": 0.5, "at_most": 1.0}, "measure and at_most go together"),
        ({"measure": len}, "got only measure"),
        (
            {"measure": lambda kept: 3.0, "at_most": 2.0},
            "at_most=2 can't be met: measure gave 3 at the least, with 1 in 'a', 1 in 'b'; and was "
            "asked down to one neuron in each of the 2 groups.",
        ),
        ({"sparsity": 0.5, "flops": 0.5}, "got sparsity, flops."),
        ({"sparsity": 1.0}, "sparsity is the fraction pruned"),
        ({"flops": 1.5}, "flops is the fraction of the dense network's that may be left"),
        ({"weights": 0.0}, "in (0, 1], not traced; got 0.0"),
        ({"sparsity": 0.5, "round_to": 0}, "round_to is an integer of at least 1; got 0"),
        (
            {"flops": 0.001},
            "flops=0.001 can't be met: with one neuron left in each of the 2",
        ),
        ({"weights": 0.01, "round_to": 8}, "with 8 neurons left in each of the 2 groups"),
        # 8 of a, 8 of b: 32 + 64 + 16 of 672 weights
        ({"weights": 0.1, "round_to": 8}, "0.1667 of the weights are. Of these hang 0.14 on 'a'"),
        ({"weights": 0.1, "round_to": 8}, ", 0.12 on 'b', and 0 on no group. Collapse groups"),
    ],
)
def test_bad_input(options, fragment):
    assert fragment in raised(lambda: jp.pick(STRUCTURE, SCORES, **options))


def test_bad_scores():
    said = raised(lambda: jp.pick(STRUCTURE, {"a": jnp.ones(8)}, 0.5))
    assert "wanted {'b': (64,)}, got {'b': 'nothing'}" in said
    assert "there is no group ['d']" in raised(
        lambda: jp.pick(STRUCTURE, {**SCORES, "d": jnp.ones(2)}, 0.5)
    )
    said = raised(lambda: jp.pick(STRUCTURE, jp.structured.per_group(STRUCTURE), 0.5), TypeError)
    assert "got a function. Call it on the params: it makes scores." in said and "None" not in said
    frozen = jp.analyze(FN, PARAMS, jnp.ones((1, 4)), freeze=["*"])
    assert "there is no group to pick from" in raised(lambda: jp.pick(frozen, {}, 0.5))
