"""The words of the library: what a sparsity is, what a mask is, where None stays None."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.base import MaskState, check_fraction, check_sparsity, is_mask
from jaxprune.trees import is_none, map_scored


@pytest.mark.parametrize("sparsity", [0, 0.0, 0.5, 0.999, np.float32(0.9), np.float64(0.25)])
def test_a_fraction_passes_unchanged(sparsity):
    assert check_fraction(sparsity) is sparsity


def test_a_scalar_array_passes_unchanged():
    for sparsity in (jnp.float32(0.5), np.array(0.5)):
        assert check_fraction(sparsity) is sparsity


def test_a_traced_sparsity_passes_unchanged():
    passed = []

    @jax.jit
    def f(sparsity):
        passed.append(check_fraction(sparsity) is sparsity)
        return sparsity

    f(90.0)  # unknown while it is traced
    assert passed == [True]


@pytest.mark.parametrize(
    ("sparsity", "fragments"),
    [
        (90, ["in [0, 1)", "got 90", "For 90% write 0.9."]),
        (90.0, ["got 90", "For 90% write 0.9."]),
        (97.5, ["got 97.5", "For 97.5% write 0.975."]),
        (1.0, ["in [0, 1)", "got 1."]),
        (1, ["in [0, 1)", "got 1."]),
        (-0.1, ["in [0, 1)", "got -0.1."]),
        (100, ["got 100."]),
        (float("nan"), ["in [0, 1)", "got nan."]),
        (float("inf"), ["got inf."]),
        (np.float32(1.5), ["got 1.5"]),
        (jnp.float32(-1), ["got -1."]),
    ],
)
def test_no_fraction_is_refused(sparsity, fragments):
    with pytest.raises(ValueError) as error:
        check_fraction(sparsity)
    for fragment in fragments:
        assert fragment in str(error.value)


@pytest.mark.parametrize("sparsity", [1.0, -0.1, 100, float("nan")])
def test_percent_is_suggested_only_for_percents(sparsity):
    with pytest.raises(ValueError) as error:
        check_fraction(sparsity)
    assert "%" not in str(error.value)


@pytest.mark.parametrize(
    ("sparsity", "kind"),
    [(True, "bool"), (False, "bool"), ("0.9", "str"), (None, "NoneType"), ([0.9], "list")],
)
def test_no_number_is_refused_by_its_type(sparsity, kind):
    with pytest.raises(TypeError, match="sparsity must be a number in") as error:
        check_fraction(sparsity)
    assert repr(sparsity) in str(error.value) and f"of type {kind}" in str(error.value)


@pytest.mark.parametrize("array", [np.array([0.5, 0.9]), jnp.array([0.5])])
def test_an_array_of_sparsities_is_sent_to_per_layer(array):
    with pytest.raises(ValueError, match="must be one number") as error:
        check_fraction(array)
    assert f"shape {array.shape}" in str(error.value)
    assert "allocation=per_layer({path: sparsity})" in str(error.value)


def test_map_scored_leaves_none_where_the_first_tree_has_none():
    first = {"a": jnp.array([1.0, 2.0]), "b": None}
    second = {"a": jnp.array([10.0, 20.0]), "b": jnp.ones(3)}
    added = map_scored(lambda x, y: x + y, first, second)
    assert added["b"] is None
    assert added["a"].tolist() == [11.0, 22.0]


def test_map_scored_hands_on_none_of_the_other_trees():
    assert map_scored(lambda x, y: y is None, {"a": 1.0}, {"a": None}) == {"a": True}


def test_is_mask():
    assert is_mask(jnp.ones(2, bool)) and is_mask(np.zeros((), bool)) and is_mask(np.bool_(True))
    assert not is_mask(jnp.ones(2)) and not is_mask(jnp.ones(2, jnp.int8))
    assert not is_mask(None) and not is_mask([True])


def test_is_mask_of_a_bool_struct():
    assert is_mask(jax.ShapeDtypeStruct((2,), bool))


def test_is_none():
    assert is_none(None) and not is_none(0) and not is_none(())


def test_mask_state_is_a_pytree_of_its_masks():
    mask = jnp.ones(2, bool)
    assert jax.tree.leaves(MaskState({"a": mask, "b": None})) == [mask]


@pytest.mark.parametrize("sparsity", [np.bool_(True), jnp.array(True), np.array(False)])
def test_a_bool_is_no_sparsity(sparsity):
    for check in (check_sparsity, check_fraction):
        with pytest.raises(TypeError, match="sparsity must be a number in"):
            check(sparsity)


@pytest.mark.parametrize("sparsity", [0, 20, np.int64(20), jnp.int32(99), np.array(3), 0.5])
def test_a_number_of_weights_passes_unchanged(sparsity):
    assert check_sparsity(sparsity, 100) is sparsity


# --- functions as arguments ----------------------------------------------------------------------

PARAMS = {"a": jnp.arange(12.0).reshape(3, 4), "b": jnp.arange(8.0).reshape(4, 2)}
KEY = jax.random.key(0)
keep = lambda params, masks, variation: params

# what is called, with a function that makes the argument in place of the argument
NOT_CALLED = {
    "prune: score is": lambda: jp.prune(jp.lamp, jp.uniform, 0.5),
    "random(key)": lambda: jp.prune(jp.random, jp.uniform, 0.5),
    "lamp: score is": lambda: jp.lamp(jp.random),
    "soups.phase: score is": lambda: jp.soups.phase(keep, PARAMS, 0.5, KEY[None], score=jp.lamp),
    "structured.prune: score is": lambda: jp.structured.prune(None, jp.structured.per_group),
    "prune: prunable is": lambda: jp.prune(jp.magnitude, jp.uniform, 0.5, prunable=jp.matching),
    "prunable is": lambda: jp.set(KEY, 0.5, prunable=jp.matching).init(PARAMS),
    "allocation is": lambda: jp.prune(jp.magnitude, jp.per_layer, 0.5),
    "erk_plus": lambda: jp.select(PARAMS, jp.allocation.erk_plus, 0.5),
    "per_layer": lambda: jp.rigl(KEY, 0.5, allocation=jp.per_layer),
    "allocation.like": lambda: jp.dpf(0.5, jp.allocation.like),
    "uniform_plus": lambda: jp.top_kast(0.5, 0.2, jp.allocation.uniform_plus),
    "pattern is": lambda: jp.prune(jp.magnitude, jp.uniform, 0.5, jp.nm),
    "jp.block(4, 4)": lambda: jp.dpf(0.5, pattern=jp.block),
    "jp.channel(-1)": lambda: jp.select(PARAMS, jp.uniform, 0.5, jp.channel),
}


@pytest.mark.parametrize("said", NOT_CALLED)
def test_a_function_that_must_be_called_first(said):
    with pytest.raises(TypeError, match=r"Call it first, as in jp\.") as error:
        NOT_CALLED[said]()
    assert said in str(error.value)


# --- numbers of weights --------------------------------------------------------------------------

COUNTED = {
    "prune": lambda n: jp.prune(jp.magnitude, jp.uniform, n).init,
    "static": lambda n: jp.static(KEY, n).init,
    "set": lambda n: jp.set(KEY, n).init,
    "rigl": lambda n: jp.rigl(KEY, n, allocation=jp.global_threshold).init,
    "dpf": lambda n: jp.dpf(n).init,
    "top_kast": lambda n: jp.top_kast(n, 3, jp.global_threshold).init,
    "soups.phase": lambda n: lambda params: jp.soups.phase(keep, params, n, KEY[None]),
}


@pytest.mark.full
@pytest.mark.parametrize("name", COUNTED)
def test_an_integer_sparsity_is_a_number_of_weights_everywhere(name):
    zeros = sum(int((~m).sum()) for m in jax.tree.leaves(COUNTED[name](10)(PARAMS).masks))
    assert zeros == (0 if name == "prune" else 10)  # prune starts dense
    for n, said in ((20, "how many weights of 20 are pruned"), (-1, "how many weights")):
        with pytest.raises(ValueError, match=said):
            COUNTED[name](n)(PARAMS)


def test_where_a_number_of_weights_has_no_meaning_the_error_says_why():
    with pytest.raises(ValueError, match="No number of weights has a rate"):
        jp.tickets.schedule(500, 3)
    with pytest.raises(TypeError, match=r"both are fractions .* or both numbers of weights"):
        jp.top_kast(0.9, 100)
