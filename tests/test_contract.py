"""The laws of design: every mask transform with every optimizer, dtype and way to run.

The quick tests of the first law take every transform with Adam and one transform with every
optimizer, those of the other laws a few transforms with Adam. The `full` tests of the first law
take every transform with two optimizers and a few with every one, those of the other laws every
transform with Adam and a few with another.
"""

import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from optax import contrib

import jaxprune as jp
from jaxprune.trees import named_leaves
from tests.transforms import STEPS, TRANSFORMS, loss, tiny_params

OPTIMIZERS = {
    "sgd_momentum": lambda: optax.sgd(0.05, momentum=0.9),
    "adam": lambda: optax.adam(0.05),
    "adamw": lambda: optax.adamw(0.05, weight_decay=0.1),
    "lion": lambda: optax.lion(0.01),
    "adafactor": lambda: optax.adafactor(0.05),
    "adafactor_factored": lambda: optax.adafactor(0.05, min_dim_size_to_factor=4, momentum=0.9),
    "lamb": lambda: optax.lamb(0.05),
    "rmsprop": lambda: optax.rmsprop(0.05, momentum=0.9),
    "muon": lambda: contrib.muon(0.05),
    "schedule_free": lambda: contrib.schedule_free_adamw(0.05, weight_decay=0.1),
    "multi_steps": lambda: optax.MultiSteps(optax.adam(0.05), 2).gradient_transformation(),
    "masked": lambda: optax.chain(
        optax.masked(optax.trace(0.9), lambda p: jax.tree.map(lambda w: w.ndim > 1, p)),
        optax.scale(-0.05),
    ),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adamw)(
        optax.linear_schedule(0.05, 0.01, 5), b2=0.99
    ),  # its numbers have the dtype of the params, and 0.999 would be 1 in bfloat16
    "soft_shrinkage": lambda: optax.chain(optax.adam(0.05), jp.dynamic.soft_shrinkage(0.5)),
    "noise_and_momentum": lambda: optax.chain(
        optax.add_noise(0.1, 0.5, jax.random.key(0)), optax.sgd(0.05, momentum=0.9)
    ),
}
TWO = ("sgd_momentum", "adam")
FEW = ("gradual_global", "fixed_then_pruned", "set_two_sided", "granet_dense_start", "neurons")
two_optimizers = pytest.mark.parametrize(
    ("transform", "optimizer"),
    [
        pytest.param(t, o, marks=() if o == "adam" and t in FEW else pytest.mark.full)
        for t, o in itertools.product(TRANSFORMS, TWO)
        if o == "adam" or t in FEW
    ],
)


def spy():
    """Passes gradients on, and keeps a flat copy of what it saw, which no one takes for moments."""

    def flat(grads):
        return jnp.concatenate([g.reshape(-1).astype(jnp.float32) for g in jax.tree.leaves(grads)])

    return optax.GradientTransformation(
        lambda params: {"seen": jnp.zeros_like(flat(params))},
        lambda grads, state, params=None: (grads, {"seen": flat(grads)}),
    )


def make(transform, optimizer, params):
    inner = optax.chain(spy(), OPTIMIZERS[optimizer]())
    return jp.sparsify(inner, TRANSFORMS[transform](params))


def violations(params, state):
    """How many pruned weights, gradients seen and moments are not exactly zero; (3,) int32."""
    masks = dict(named_leaves(jp.get_masks(state)))
    weights = dict(named_leaves(params))
    kept = [
        jnp.ones(np.shape(w), bool) if masks[path] is None else masks[path]
        for path, w in weights.items()
        if w is not None
    ]
    outside = {m.shape: ~m for m in masks.values() if m is not None}

    def count(leaf):
        pruned = outside.get(jnp.shape(leaf))
        return 0 if pruned is None else jnp.sum(pruned & (leaf != 0))

    seen, rest = state.inner_state[0]["seen"], state.inner_state[1:]
    flat = jnp.concatenate([m.reshape(-1) for m in kept])
    in_weights = sum(count(w) for path, w in weights.items() if w is not None)
    in_moments = sum(count(leaf) for leaf in jax.tree.leaves(rest))
    return jnp.stack([in_weights, jnp.sum(~flat & (seen != 0)), in_moments])


def train(tx, params, state):
    """Runs the updates in a scan: final params, state, and per step violations and sparsity."""

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        log = violations(params, state), jp.sparsity(jp.get_masks(state))
        return (params, state), log

    (params, state), log = jax.lax.scan(step, (params, state), length=STEPS)
    return params, state, log


def masks_of(state):
    return [np.asarray(m) for m in jax.tree.leaves(jp.get_masks(state))]


@functools.cache
def runner(transform, optimizer):
    """`train` as a function of the params, compiled once for all laws of a pair."""
    tx = make(transform, optimizer, tiny_params())
    compiled = jax.jit(functools.partial(train, tx))
    return lambda params: compiled(params, tx.init(params))


@functools.cache
def reference(transform, optimizer):
    """The run that other ways to run are compared with."""
    return runner(transform, optimizer)(tiny_params())


# --- law 1: one invariant ------------------------------------------------------------------------


def first_law():
    """Quick: a row and a column. Full: all transforms with two optimizers, some with every one."""
    for t, o in itertools.product(TRANSFORMS, OPTIMIZERS):
        if o in TWO or t in FEW:
            is_quick = o == "adam" or t == "gradual_global"
            yield pytest.param(t, o, marks=() if is_quick else pytest.mark.full)


@pytest.mark.parametrize(("transform", "optimizer"), list(first_law()))
def test_pruned_weights_gradients_and_moments_are_exactly_zero(transform, optimizer):
    _, _, (outside, sparsity) = reference(transform, optimizer)
    np.testing.assert_array_equal(outside, 0)
    assert sparsity[-1] > 0.4  # the law is not kept by pruning nothing


def low_precision():
    """All transforms by turns in either precision, two of them in both and with all optimizers.

    Quick: a few by turns, all optimizers in float16.
    """
    turns = dict(zip(TRANSFORMS, itertools.cycle((jnp.bfloat16, jnp.float16)), strict=False))
    for t, o in itertools.product(TRANSFORMS, OPTIMIZERS):
        if o == "adam" or t in ("gradual_global", "rigl"):
            for dtype in (jnp.bfloat16, jnp.float16):
                if dtype != turns[t] and t not in ("gradual_global", "rigl"):
                    continue
                by_turns = o == "adam" and t in (*FEW, "rigl") and dtype == turns[t]
                is_quick = by_turns or (t == "gradual_global" and dtype == jnp.float16)
                yield pytest.param(t, o, dtype, marks=() if is_quick else pytest.mark.full)


@pytest.mark.parametrize(("transform", "optimizer", "dtype"), list(low_precision()))
def test_low_precision_keeps_exact_zeros_and_dtypes(transform, optimizer, dtype):
    """And makes no nan, though an eps of 1e-8 is zero in float16."""
    params = tiny_params(dtype)
    tx = make(transform, optimizer, params)
    new, state, (outside, sparsity) = jax.jit(functools.partial(train, tx))(params, tx.init(params))
    np.testing.assert_array_equal(outside, 0)
    assert sparsity[-1] > 0.4
    assert all(w.dtype == dtype for w in jax.tree.leaves(new))
    assert is_finite((new, state))


def is_finite(tree):
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return all(np.isfinite(np.asarray(x, np.float32)).all() for x in floats)


# --- law 2: exact counts -------------------------------------------------------------------------


@functools.cache
def selected(allocation):
    """`jp.select` of (scores, sparsity): a dtype is compiled once for all sparsities."""
    return jax.jit(lambda scores, sparsity: jp.select(scores, allocation, sparsity))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 1 / 3, 0.5, 0.77, 0.999])
def test_counts_are_exact(sparsity, dtype):
    scores = jp.magnitude(jp.kernels(tiny_params(dtype)))
    sizes = np.array([s.size for s in jax.tree.leaves(scores)])

    def pruned(allocation, s):
        masks = selected(allocation)(scores, s)
        return np.array([np.sum(~np.asarray(m)) for m in jax.tree.leaves(masks)])

    traced = jnp.float32(sparsity)
    np.testing.assert_array_equal(pruned(jp.uniform, traced), np.round(sparsity * sizes))
    assert pruned(jp.global_threshold, traced).sum() == round(sparsity * sizes.sum())
    assert abs(pruned(jp.erk, traced).sum() - sparsity * sizes.sum()) <= 1


# --- law 4: randomness is a key ------------------------------------------------------------------


def test_two_keys_make_two_masks_and_steps_draw_anew():
    params = jp.kernels(tiny_params())
    draw = jax.jit(lambda key, step: jp.select(jp.random(key)(params, step=step), jp.uniform, 0.5))
    base = draw(jax.random.key(0), 0)
    assert jp.overlap(base, draw(jax.random.key(0), 0)) == 1
    assert 0.2 < jp.overlap(base, draw(jax.random.key(1), 0)) < 0.5
    assert 0.2 < jp.overlap(base, draw(jax.random.key(0), 1)) < 0.5


# --- law 5: a vmapped run is a loop of runs ------------------------------------------------------


@two_optimizers
def test_vmapped_runs_equal_a_loop_of_runs(transform, optimizer):
    params = tiny_params()
    lanes = [jax.tree.map(lambda w, a=a: w * a + (1 - a) / 7, params) for a in (1.0, 0.5, -0.8)]
    stack = jax.tree.map(lambda *ws: jnp.stack(ws), *lanes)
    tx = make(transform, optimizer, params)
    stacked = jax.jit(jax.vmap(lambda p: train(tx, p, tx.init(p))[:2]))(stack)
    for lane, params in enumerate(lanes):
        weights, state, _ = runner(transform, optimizer)(params)
        own_weights, own_state = jax.tree.map(lambda x, i=lane: x[i], stacked)
        for mask, own in zip(masks_of(state), masks_of(own_state), strict=True):
            np.testing.assert_array_equal(own, mask)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6),
            own_weights,
            weights,
        )


def test_a_vmapped_mask_update_is_still_a_branch():
    """Under plain vmap a cond becomes a select, and the update would run at every step."""
    params = tiny_params()
    tx = make("gradual_global", "adam", params)
    stack = jax.tree.map(lambda w: jnp.stack([w] * 3), params)
    states = jax.vmap(tx.init)(stack)
    hlo = jax.jit(jax.vmap(tx.update)).lower(stack, states, stack).as_text()
    assert "stablehlo.case" in hlo
    # the search for the threshold stands inside the branch and nowhere else
    assert hlo.index("stablehlo.case") < hlo.index("stablehlo.while")


# --- law 6: the state never changes shape --------------------------------------------------------


@two_optimizers
def test_state_keeps_structure_and_compiles_once_with_donation(transform, optimizer):
    params = tiny_params()
    tx = make(transform, optimizer, params)
    traces = []

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        traces.append(1)
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    before = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    for _ in range(STEPS):
        params, state = step(params, state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == before
    assert len(traces) == 1
    wanted = masks_of(reference(transform, optimizer)[1])
    jax.tree.map(np.testing.assert_array_equal, masks_of(state), wanted)
    # what was donated was no array of the transform's: a second run is the first
    params = tiny_params()
    state = tx.init(params)
    for _ in range(STEPS):
        params, state = step(params, state)
    jax.tree.map(np.testing.assert_array_equal, masks_of(state), wanted)


@pytest.mark.parametrize(
    "transform", ["gradual_global", "one_shot_saliency_erk", "fixed_then_pruned"]
)
def test_a_checkpoint_resumes_to_the_same_bits(transform, tmp_path):
    params = tiny_params()
    tx = make(transform, "adam", params)
    step = jax.jit(lambda p, s: tx.update(jax.grad(loss)(p), s, p))

    def run(params, state, steps):
        for _ in range(steps):
            updates, state = step(params, state)
            params = optax.apply_updates(params, updates)
        return params, state

    half = run(params, tx.init(params), 3)
    whole = run(*half, STEPS - 3)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "half", half)
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "half", jax.eval_shape(lambda: half))
    resumed = run(*restored, STEPS - 3)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


# --- law 7: sharding is invisible ----------------------------------------------------------------


# it sorts; blocks straddle devices, as no other patterns do here
GATHER = {"lamp", "blocks", "balanced_blocks", "rigl_in_blocks"}

# the axis types of a mesh, by optimizer: pairs again
AXES = {"sgd_momentum": AxisType.Auto, "adam": AxisType.Explicit}


def spread(params, axis):
    """Params over 2 x 4 devices, both axes of a kernel and that of a bias; and the mesh."""
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(axis, axis))
    specs = {0: P(), 1: P("model"), 2: P("data", "model")}
    put = lambda w: jax.device_put(w, NamedSharding(mesh, specs[w.ndim]))
    return jax.tree.map(put, params), mesh


def moved(compiled):
    """How many numbers each collective of a program hands on."""
    kinds = r"(?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-[a-z]+)(?:-start)?\("
    results = re.findall(rf"= (.+?) {kinds}", compiled.as_text())
    shapes = [re.findall(r"\[([\d,]*)\]", result) for result in results]
    size = lambda shape: math.prod(int(n) for n in shape.split(",") if n)
    return [max(map(size, of_one)) for of_one in shapes]


@two_optimizers
def test_eight_devices_make_the_masks_of_one(transform, optimizer):
    """Under automatic and explicit axes; masks lie like their params, from the first on."""
    params, mesh = spread(tiny_params(), AXES[optimizer])
    tx = jp.sparsify(OPTIMIZERS[optimizer](), TRANSFORMS[transform](tiny_params()))

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    def run(params):
        first = tx.init(params)
        (params, last), _ = jax.lax.scan(step, (params, first), length=STEPS)
        return params, first, last

    with jax.set_mesh(mesh):
        compiled = jax.jit(run).lower(params).compile()
        weights, first, last = compiled(params)
    one_device = reference(transform, optimizer)
    for mask, wanted in zip(masks_of(last), masks_of(one_device[1]), strict=True):
        np.testing.assert_array_equal(mask, wanted)
    jax.tree.map(np.testing.assert_array_equal, weights, one_device[0])
    for masks in jp.get_masks(first), jp.get_masks(last):
        for (path, mask), (_, w) in zip(named_leaves(masks), named_leaves(params), strict=True):
            assert mask is None or mask.sharding.is_equivalent_to(w.sharding, w.ndim), path
    # three counts a shard and a sum an axis: never a leaf, whole or in part
    sizes = moved(compiled)
    assert (max(sizes, default=0) > 24) == (transform in GATHER), sizes


@pytest.mark.parametrize("axis", [AxisType.Auto, AxisType.Explicit])
def test_a_global_update_on_eight_devices_moves_only_counts(axis):
    """At sizes where no leaf is as small as eight counts."""
    like = {"up": jnp.ones((64, 48)), "down": jnp.ones((48, 16))}
    params, mesh = spread(like, axis)
    tx = jp.sparsify(optax.adam(0.1), jp.prune(jp.magnitude, jp.global_threshold, lambda t: 0.9))
    with jax.set_mesh(mesh):
        state = jax.jit(tx.init)(params)
        compiled = jax.jit(tx.update).lower(params, state, params).compile()
    hlo = compiled.as_text()
    sizes = moved(compiled)
    assert sizes and max(sizes) <= 8  # of each of three thresholds, a count a shard
    assert not any(f" {op}(" in hlo for op in ("sort", "gather", "all-to-all"))
    assert "collective-permute" not in hlo
    _, new = compiled(params, state, params)
    for mask, w in zip(jax.tree.leaves(jp.get_masks(new)), jax.tree.leaves(params), strict=True):
        assert mask.sharding.is_equivalent_to(w.sharding, mask.ndim)
