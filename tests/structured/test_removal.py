"""Groups that keep nothing, and blocks that go: what is left is the masked network, and smaller."""

from collections import Counter
from functools import lru_cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.coupling.networks import NETWORKS, built
from tests.coupling.test_analyze import weights
from tests.coupling.test_stated import raised
from tests.structured.test_compact import some

close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


class Block(nn.Module):
    """Two convolutions with batch norm; a projection in the shortcut if asked for."""

    projected: bool = False
    train: bool = False

    @nn.compact
    def __call__(self, x):
        norm = lambda **own: nn.BatchNorm(use_running_average=not self.train, **own)
        y = nn.relu(norm()(nn.Conv(3, (3, 3), use_bias=False)(x)))
        y = norm()(nn.Conv(4, (3, 3))(y))
        x = nn.Conv(4, (1, 1), name="shortcut")(x) if self.projected else x
        return nn.relu(x + y)


class ResNet(nn.Module):
    train: bool = False

    @nn.compact
    def __call__(self, x):
        x = Block(projected=True, train=self.train, name="block_0")(x)
        for i in (1, 2):
            x = Block(train=self.train, name=f"block_{i}")(x)
        return nn.Dense(2)(x.mean((1, 2)))


@lru_cache
def resnet():
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(ResNet().init, jax.random.key(1), x)
    variables = jax.tree.map(lambda w: jnp.asarray(rng.uniform(0.1, 0.9, w.shape), w.dtype), shapes)
    return jp.analyze(ResNet().apply, variables, x), variables, x


def emptied(structure, *names):
    """Half of each group, and nothing of these."""
    none = {name: np.zeros(structure.groups[name].size, bool) for name in names}
    return {**some(structure), **none}


def both(structure, variables, removal, *args):
    """The outputs of the masked and of the compacted network, and the latter."""
    masked = jp.apply_masks(variables, jp.structured.masks(structure, removal))
    small = jp.compact(structure, variables, removal)
    run = jax.jit(lambda v, p, *args: (structure.fn(v, *args), small.fn(p, *args)))
    return *run(masked, small.params, *args), small


def kinds(fn, *args):
    """How many of each primitive there are, those in loops and calls too."""

    def walk(jaxpr):
        found = Counter(eqn.primitive.name for eqn in jaxpr.eqns)
        for eqn in jaxpr.eqns:
            for inner in jax.extend.core.jaxprs_in_params(eqn.params):
                found += walk(inner)
        return found

    return walk(jax.make_jaxpr(fn)(*args).jaxpr)


# --- compacted is masked --------------------------------------------------------------------------

# without which group, what is empty with it, and of how many leaves how many go: the empty axis
# with what nothing reads then, or the whole branch
BRANCHES = [
    ("batch norm", "params/Conv_1", [], 17, (6, 10)),
    ("layer norm", "params/Conv_1", [], 11, (5, 6)),
    ("group norm", "params/Conv_1.axis3.part0", ["params/Conv_1.axis3.part1"], 11, (5, 6)),
    ("concat", "params/Conv_1", [], 8, (2, 2)),
    ("unet", "params/Conv_1", ["params/ConvTranspose_0"], 10, (3, 4)),
    ("attention", "params/CheckpointBlock_0/Dense_1", [], 28, (7, 8)),
    ("scan", "params/ScanLayer_0/Dense_1", [], 8, (3, 4)),
]


@pytest.mark.full
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("name", "group", "with_it", "before", "gone"), BRANCHES)
def test_compacted_is_masked(name, group, with_it, before, gone, whole):
    variables, x = built(name)
    structure = jp.analyze(NETWORKS[name].module.apply, variables, x)
    remove = jp.structured.remove_emptied if whole else jp.structured.collapse_emptied
    removal = remove(structure, emptied(structure, group))
    masked, compacted, small = both(structure, variables, removal, x)
    close(compacted, masked)
    left = jax.tree.leaves(small.params)
    assert before - len(left) == len(removal.removed) == gone[whole]
    assert all(w.size for w in left)
    if whole:
        assert {g for g, own in removal.kept.items() if not own.any()} == {group, *with_it}
    assert jp.structured.cost(structure, removal).weights == sum(w.size for w in left)


def test_a_constant_stays_or_goes():
    """Of x + (h @ w + b), where h is empty: x + b, or x."""
    params = weights(a=(4, 3), h=(3, 5), w=(5, 3), b=(1, 3), out=(3, 2))

    def fn(p, x):
        x = x @ p["a"]
        return (x + (jnp.tanh(x @ p["h"]) @ p["w"] + p["b"])) @ p["out"]

    x = jnp.ones((2, 4))
    structure = jp.analyze(fn, params, x)
    kept = {"h": np.zeros(5, bool)}
    collapsed, removed = (
        f(structure, kept) for f in (jp.structured.collapse_emptied, jp.structured.remove_emptied)
    )
    assert (collapsed.removed, removed.removed) == (("h", "w"), ("b", "h", "w"))
    for removal, constant in ((collapsed, params["b"]), (removed, 0)):
        masked, compacted, small = both(structure, params, removal, x)
        close(compacted, (x @ params["a"] + constant) @ params["out"])
        np.testing.assert_array_equal(compacted, masked)
        assert kinds(small.fn, small.params, x)["dot_general"] == 2
    assert jp.structured.cost(structure, removed) == (3, 12 + 6, 2 * 2 * (12 + 6))


def test_a_constant_that_is_not_added_stays():
    """The gate of squeeze and excite without its hidden neurons: sigmoid(bias) of each channel."""
    variables, x = built("separable")
    structure = jp.analyze(NETWORKS["separable"].module.apply, variables, x)
    removal = jp.structured.remove_emptied(structure, emptied(structure, "params/Dense_1"))
    masked, compacted, small = both(structure, variables, removal, x)
    close(compacted, masked)
    assert small.params["params"]["Dense_0"]["bias"] is not None


def test_in_loops_branches_and_derivatives():
    """A carry that starts at zero and stays so, a branch of a cond, relu and silu of zero."""
    params = weights(a=(4, 5), h=(5, 3), w=(3, 5), out=(5, 2))
    x = jax.random.normal(jax.random.key(0), (2, 4))

    def branch(p, x):
        return nn.silu(nn.relu(x @ p["h"])) @ p["w"]

    def scanned(p, x):
        turn = lambda both, _: ((both[0] + both[1], both[1] + branch(p, both[0])), both[1].sum())
        (x, y), sums = jax.lax.scan(turn, (x, jnp.zeros_like(x)), length=2)
        return x + y + sums.sum()

    def looped(p, x):
        body = lambda c: (c[0] + 1, c[1] + branch(p, c[1]))
        return jax.lax.while_loop(lambda c: c[0] < 2, body, (0, x))[1]

    def chosen(p, x):
        return jax.lax.cond(x.sum() > 0, lambda x: x + branch(p, x), lambda x: x, x)

    def ready_made(p, x):
        f = jax.checkpoint(jax.jit(lambda x: x + branch(p, x)))
        return jax.vmap(f)(x[:, None])[:, 0]

    for through in (scanned, looped, chosen, ready_made):
        fn = lambda p, x, through=through: through(p, x @ p["a"]) @ p["out"]
        structure = jp.analyze(fn, params, x)
        for remove in (jp.structured.collapse_emptied, jp.structured.remove_emptied):
            removal = remove(structure, {"h": np.zeros(3, bool), "a": np.arange(5) != 2})
            masked, compacted, small = both(structure, params, removal, x)
            close(compacted, masked)
            assert removal.removed == ("h", "w"), through
            assert kinds(small.fn, small.params, x)["dot_general"] == 2


# --- blocks ---------------------------------------------------------------------------------------


def test_without_a_block_it_is_bit_for_bit_with_zeros_in_its_place():
    structure, variables, x = resnet()
    removal = jp.structured.remove_blocks(structure, ["block_1"])
    masked, compacted, small = both(structure, variables, removal, x)
    np.testing.assert_array_equal(compacted, masked)
    assert not jax.tree.leaves([small.params[c]["block_1"] for c in ("params", "batch_stats")])
    assert kinds(small.fn, small.params, x)["conv_general_dilated"] == 5  # of 7
    # and of the others fewer neurons
    both_ways = jp.structured.remove_blocks(structure, ["block_1"], some(structure))
    masked, compacted, _ = both(structure, variables, both_ways, x)
    close(compacted, masked)
    again = jp.structured.remove_blocks(structure, ["block_2"], both_ways)
    assert set(again.removed) > set(both_ways.removed)
    # whatever is emptied then is added to it
    for remove in (jp.structured.collapse_emptied, jp.structured.remove_emptied):
        same = remove(structure, removal)
        assert set(same.removed) == set(removal.removed)


def test_keys_and_counts_of_a_block_stay():
    params = {"out": jnp.ones((4, 2)), "block": {"w": jnp.ones((4, 4)), "key": jax.random.key(0)}}

    def fn(p, x):
        noise = jax.random.normal(p["block"]["key"], (1, 4))
        return (x + (x @ p["block"]["w"]) * noise) @ p["out"]

    structure = jp.analyze(fn, params, jnp.ones((2, 4)))
    removal = jp.structured.remove_blocks(structure, ["block"])
    assert removal.removed == ("block/w",)
    masked, compacted, _ = both(structure, params, removal, jnp.ones((2, 4)))
    np.testing.assert_array_equal(compacted, masked)


def test_blocks_that_can_go():
    structure, variables, x = resnet()
    blocks = ["block_0", "block_0/shortcut", "block_1", "block_2", "params/Dense_0"]
    assert jp.structured.removable_blocks(structure, blocks) == [
        "block_0/shortcut",
        "block_1",
        "block_2",
    ]
    said = raised(lambda: jp.structured.remove_blocks(structure, ["block_2", "block_0"]))
    assert "output 0 depends on no input any more without block 'block_2', block 'block_0'" in said
    # a projection without channels is no shortcut: what is left is the branch
    masked, compacted, _ = both(
        structure, variables, jp.structured.remove_blocks(structure, ["block_0/shortcut"]), x
    )
    np.testing.assert_array_equal(compacted, masked)


def test_two_stages():
    """What is small is analyzed, pruned and compacted like what is large."""
    structure, variables, x = resnet()
    none = lambda block: {f"params/{block}/Conv_0": np.zeros(3, bool)}
    first = jp.compact(
        structure, variables, jp.structured.remove_emptied(structure, none("block_1"))
    )
    again = jp.analyze(first.fn, first.params, x)
    assert list(again.groups) == [g for g in structure.groups if "block_1" not in g]
    removal = jp.structured.remove_emptied(again, none("block_2"))
    masked, compacted, second = both(again, first.params, removal, x)
    close(compacted, masked)
    assert kinds(second.fn, second.params, x)["conv_general_dilated"] == 3


@pytest.mark.full
def test_it_trains_on():
    """Another batch size; new running statistics; gradients, and an optimizer's state, shrunk."""
    structure, variables, x = resnet()
    removal = jp.structured.remove_emptied(structure, emptied(structure, "params/block_1/Conv_0"))
    small = jp.compact(structure, variables, removal)
    one, two = jax.jit(lambda p: (small.fn(p, x[:1]), small.fn(p, x)))(small.params)
    close(one, two[:1])

    step = lambda v, x: ResNet(train=True).apply(v, x, mutable=["batch_stats"])
    own_step = jp.structured.replay(structure, removal, step)
    masked = jp.apply_masks(variables, jp.structured.masks(structure, removal))
    (y, new), (wanted, _) = jax.jit(lambda p, v: (own_step(p, x), step(v, x)))(small.params, masked)
    close(y, wanted)
    assert jax.tree.structure(new["batch_stats"]) == jax.tree.structure(small.params["batch_stats"])

    loss = lambda f: lambda p, x: (f(p, x) ** 2).sum()
    replayed = jp.structured.replay(structure, removal, jax.grad(loss(structure.fn)))
    slopes = jax.jit(lambda p: (jax.grad(loss(small.fn))(p, x), replayed(p, x)))(small.params)
    jax.tree.map(close, *slopes)
    tx = optax.adam(1e-2)
    state = jp.structured.shrink(structure, tx.init(variables), removal)
    updates, _ = tx.update(slopes[0], state, small.params)
    new = optax.apply_updates(small.params, updates)
    assert jax.tree.structure(new) == jax.tree.structure(small.params)


# --- bad input ------------------------------------------------------------------------------------


def test_bad_input():
    structure, variables, x = resnet()
    no_stem = {"params/block_0/Conv_1": np.zeros(4, bool)}
    for remove in (jp.structured.collapse_emptied, jp.structured.remove_emptied):
        said = raised(lambda remove=remove: remove(structure, no_stem))
        assert "output 0 depends on no input any more without group 'params/block_0/Conv_1'" in said
    said = raised(lambda: jp.compact(structure, variables, no_stem))
    assert "no neuron of group 'params/block_0/Conv_1'" in said and "remove_emptied(" in said
    said = raised(lambda: jp.structured.remove_blocks(structure, ["block"]))
    assert "there is no block 'block'" in said and "'params/block_0/BatchNorm_0'" in said
    said = raised(lambda: jp.structured.masks(structure, jp.structured.Removal({}, ("lost",))))
    assert "removed names 'lost', no leaves that were analyzed" in said
    removal = jp.structured.remove_blocks(structure, ["block_1"])
    said = raised(lambda: jp.structured.replay(structure, removal)(variables, x))
    assert "takes the small params" in said
