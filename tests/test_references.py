"""Every method against its paper: the equations in numpy, run for ten steps beside the library.

A reference here shares no code with the library: it sorts where that selects, and has float64 where
that has float32. What a paper leaves to chance (first masks, what grows) is read off the library,
and all that follows from it is not. Masks must agree in every entry at every step, weights
to the precision of float32: a method that is a step late, off by one weight, or that forgets its
momentum, does not pass.
"""

import math
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.quick import quick

STEPS, RATE, MOMENTUM = 10, 0.05, 0.9
SHAPES = {"a": (6, 8), "b": (8, 5)}
KEY = jax.random.key(0)


def everything(params):
    return params


def draws(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


START, CENTERS = draws(0), draws(1)
CURVES = {name: np.abs(c) + 0.5 for name, c in draws(2).items()}


def loss(params):
    """Sum of curve (w - center)^2 / 2: its gradient is dense, and known."""
    return sum(jnp.sum(CURVES[n] * (w - CENTERS[n]) ** 2) / 2 for n, w in params.items())


def slopes(params):
    return {n: CURVES[n].astype(float) * (w - CENTERS[n]) for n, w in params.items()}


# --- the pieces of the references ----------------------------------------------------------------


def top(scores, kept):
    """Masks of the `kept` highest of an array; among equals the lower index."""
    order = np.argsort(-np.ravel(scores), kind="stable")
    mask = np.zeros(np.size(scores), bool)
    mask[order[:kept]] = True
    return mask.reshape(np.shape(scores))


def top_of_all(scores, kept):
    """The same over all leaves together."""
    flat = top(np.concatenate([np.ravel(s) for s in scores.values()]), kept)
    ends = np.cumsum([np.size(s) for s in scores.values()])[:-1]
    parts = np.split(flat, ends)
    return {n: part.reshape(np.shape(scores[n])) for n, part in zip(scores, parts, strict=True)}


def sizes(tree):
    return sum(np.size(leaf) for leaf in tree.values())


def kept_of(sparsity, size):
    return size - round(sparsity * size)


def in_float64(tree):
    return {n: leaf.astype(float) for n, leaf in tree.items()}


def masked(tree, masks):
    return {n: np.where(masks[n], leaf, 0.0) for n, leaf in tree.items()}


class Momentum:
    """Heavy ball: v = momentum v + g, w = w - rate v; where a mask is False neither moves."""

    def __init__(self):
        self.v = {n: np.zeros(shape) for n, shape in SHAPES.items()}

    def forget(self, masks):
        self.v = masked(self.v, masks)

    def step(self, w, grads, where=None):
        where = where or dict.fromkeys(w, True)
        self.v = {n: np.where(where[n], MOMENTUM * v + grads[n], v) for n, v in self.v.items()}
        return {n: np.where(where[n], w[n] - RATE * self.v[n], w[n]) for n in w}


def as_numpy(tree):
    return {n: np.asarray(leaf) for n, leaf in tree.items()}


def trained(tx, steps=STEPS, sparse=True):
    """The library: [(masks, weights) before each step, and after the last], and the last state."""

    @jax.jit
    def step(params, state):
        grads = jax.grad(loss)(jp.apply_masks(params, jp.get_masks(state)))
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = {n: jnp.asarray(w) for n, w in START.items()}
    state = tx.init(params)
    if sparse:
        params = jp.apply_masks(params, jp.get_masks(state))
    log = [(as_numpy(jp.get_masks(state)), as_numpy(params))]
    for _ in range(steps):
        params, state = step(params, state)
        log.append((as_numpy(jp.get_masks(state)), as_numpy(params)))
    return log, state


def compare(found, wanted):
    """Step by step; and the masks have moved, or there was nothing to be late with."""
    assert len(found) == len(wanted)
    for step, ((masks, w), (masks_, w_)) in enumerate(zip(found, wanted, strict=True)):
        for name in masks:
            np.testing.assert_array_equal(masks[name], masks_[name], err_msg=f"{step}: {name}")
            np.testing.assert_allclose(w[name], w_[name], rtol=2e-4, atol=2e-5, err_msg=str(step))


def moves(log):
    return sum(any((a[n] != b[n]).any() for n in a) for (a, _), (b, _) in pairwise(log))


def sgd():
    return optax.sgd(RATE, MOMENTUM)


def sparse_training(first, update, due, steps=STEPS, replaces=False):
    """The reference of `sparsify`: masks first, by the gradient at the masked weights; then a step.

    `update(step, masks, w, grads) -> masks`, at steps where `due(step)`.
    """
    w, masks, optimizer = masked(in_float64(START), first), first, Momentum()
    log = [(masks, w)]
    for step in range(steps):
        grads = slopes(w)
        if due(step):
            masks = update(step, masks, w, grads)
            w = masked(w, masks)
            optimizer.forget(masks)
        if not (due(step) and replaces):
            w = masked(optimizer.step(w, masked(grads, masks)), masks)
        log.append((masks, w))
    return log


def all_true():
    return {n: np.ones(shape, bool) for n, shape in SHAPES.items()}


# --- how much of each layer ----------------------------------------------------------------------


def erdos_renyi(shapes, density, kernel):
    """Evci et al.: eps p_l of each layer, p_l = sum of dims / product; full ones leave."""
    size = {n: math.prod(s) for n, s in shapes.items()}
    dims = {n: s if kernel else s[-2:] for n, s in shapes.items()}
    p = {n: sum(d) / math.prod(d) for n, d in dims.items()}
    dense = set()
    while True:
        budget = sum(density * size[n] for n in size if n not in dense)
        budget -= sum((1 - density) * size[n] for n in dense)
        eps = budget / sum(p[n] * size[n] for n in size if n not in dense)
        most = max(p[n] for n in size if n not in dense)
        if eps * most <= 1:
            return {n: 1.0 if n in dense else eps * p[n] for n in size}
        dense |= {n for n in size if n not in dense and p[n] == most}


@pytest.mark.parametrize("density", [0.02, 0.1, 0.2, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("allocation", ["er", "erk"])
def test_erdos_renyi(allocation, density):
    shapes = {"c1": (3, 3, 3, 8), "c2": (3, 3, 8, 16), "d1": (16, 10), "d2": (300, 100)}
    masks = jax.eval_shape(lambda: {n: jnp.ones(s) for n, s in shapes.items()})
    sparsities = getattr(jp, allocation)(masks, 1 - density)
    wanted = erdos_renyi(shapes, density, kernel=allocation == "erk")
    total = 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        count = jp.selection.counting.count(sparsities[name], size)
        assert abs((size - int(count)) - wanted[name] * size) <= 1, name
        total += size - int(count)
    assert abs(total - density * sum(map(math.prod, shapes.values()))) <= len(shapes) / 2


@pytest.mark.full
def test_lamp():
    """Lee et al.: w^2 over the sum of all squares that are no smaller, of its layer."""

    def score(w):
        flat = np.ravel(w).astype(float) ** 2
        return np.array([x / flat[flat >= x].sum() for x in flat]).reshape(np.shape(w))

    scores = {n: score(w) for n, w in START.items()}
    found = jp.lamp()(START)
    for name, wanted in scores.items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-5)
    masks = jp.select(found, jp.global_threshold, 0.8)
    for name, wanted in top_of_all(scores, kept_of(0.8, sizes(START))).items():
        np.testing.assert_array_equal(masks[name], wanted)


# --- zero where pruned ---------------------------------------------------------------------------


def cubic(first, last, begin, steps):
    """Zhu and Gupta: s_f + (s_i - s_f) (1 - (t - t0) / n)^3."""
    return lambda t: last + (first - last) * (1 - np.clip((t - begin) / steps, 0, 1)) ** 3


@pytest.mark.parametrize("allocation", ["uniform", "global_threshold"])
def test_gradual_magnitude_pruning(allocation):
    schedule = optax.polynomial_schedule(0.0, 0.8, power=3, transition_steps=8, transition_begin=1)
    rule = jp.prune(jp.magnitude, getattr(jp, allocation), schedule, prunable=everything)
    found, _ = trained(jp.sparsify(sgd(), jp.every(3, rule, start=1, stop=8)))
    asked = cubic(0.0, 0.8, 1, 8)

    def update(step, masks, w, grads):
        sparsity = 0.8 if step == 8 else asked(step)  # the last update reads the schedule's end
        scores = {n: np.where(masks[n], np.abs(x), -1.0) for n, x in w.items()}
        if allocation == "uniform":
            return {n: top(s, kept_of(sparsity, s.size)) for n, s in scores.items()}
        return top_of_all(scores, kept_of(sparsity, sizes(scores)))

    wanted = sparse_training(all_true(), update, lambda step: step in (1, 4, 7, 8))
    compare(found, wanted)
    assert moves(found) >= 2  # at step 1 nothing is asked for


def first_masks(transform):
    return as_numpy(transform.init({n: jnp.asarray(w) for n, w in START.items()}).masks)


def assert_erk(masks, sparsity):
    wanted = erdos_renyi(SHAPES, 1 - sparsity, kernel=True)
    for name, mask in masks.items():
        assert abs(mask.sum() - wanted[name] * mask.size) <= 1
    assert abs(sum(m.sum() for m in masks.values()) - (1 - sparsity) * sizes(masks)) <= 1


def test_static():
    rule = jp.static(KEY, 0.7, prunable=everything)
    first = first_masks(rule)
    assert_erk(first, 0.7)
    found, _ = trained(jp.sparsify(sgd(), rule))
    compare(found, sparse_training(first, None, lambda step: False))


def cosine(first, steps, alpha=0.0):
    """From `first` to alpha first, as half a cosine."""
    half = lambda t: 0.5 * (1 + math.cos(math.pi * min(t, steps) / steps))
    return lambda t: first * ((1 - alpha) * half(t) + alpha)


def rewired(masks, w, promise, n_dropped):
    """Drops the smallest |w|, grows the most promising of all that are then pruned."""
    made = {}
    for name, mask in masks.items():
        n, kept = n_dropped(int(mask.sum())), int(mask.sum())
        left = top(np.where(mask, np.abs(w[name]), -1.0), kept - n)
        grown = top(np.where(left, -1.0, promise[name]), n)
        made[name] = left | grown
    return made


@pytest.mark.parametrize("replaces", [False, True])
def test_rigl(replaces):
    """Evci et al.: int(f kept) of each layer go and come, f a cosine; new weights start at 0."""
    rule = jp.rigl(KEY, 0.6, optax.cosine_decay_schedule(0.35, 9), prunable=everything)
    first, fraction = first_masks(rule), cosine(0.35, 9)
    assert_erk(first, 0.6)
    tx = jp.sparsify(sgd(), jp.every(2, rule, stop=6), update_replaces_step=replaces)
    found, _ = trained(tx)

    def update(step, masks, w, grads):
        promise = {n: np.abs(g) for n, g in grads.items()}
        share = fraction(1_000 if step == 6 else step)  # the last update reads the schedule's end
        return rewired(masks, w, promise, lambda kept: int(share * kept + 1e-9))

    wanted = sparse_training(first, update, lambda step: step in (0, 2, 4, 6), replaces=replaces)
    compare(found, wanted)
    assert moves(found) >= 3


@pytest.mark.parametrize("two_sided", [False, True])
def test_set_and_itop(two_sided):
    """Mocanu et al.: the smallest go (or those of either sign), as many others come at random."""
    rule = jp.set(KEY, 0.6, 0.3, prunable=everything, two_sided=two_sided)
    first = first_masks(rule)
    assert_erk(first, 0.6)
    found, state = trained(jp.sparsify(sgd(), jp.every(3, jp.itop(rule), start=3)))
    chance = jp.random(jax.random.split(KEY)[1])
    ever = dict(first)

    def update(step, masks, w, grads):
        luck = as_numpy(chance(START, step=jnp.int32(step)))
        made = {}
        for name, mask in masks.items():
            x, left = w[name], np.zeros_like(mask)
            sides = [mask & (x >= 0), mask & (x < 0)] if two_sided else [mask]
            for side in sides:
                n = int(side.sum())
                left |= top(np.where(side, np.abs(x), -1.0), n - int(0.3 * n + 1e-9)) & side
            grown = top(np.where(left, -1.0, luck[name]), int(mask.sum() - left.sum()))
            made[name] = left | grown
            ever[name] = ever[name] | made[name]
        return made

    wanted = sparse_training(first, update, lambda step: step in (3, 6, 9))
    compare(found, wanted)
    assert moves(found) == 3
    for name, mask in jp.dynamic.ever_active(state).items():
        np.testing.assert_array_equal(mask, ever[name])


@pytest.mark.parametrize("start", [0.0, 0.4])
def test_granet(start):
    """Liu et al.: prune all layers together to s(t), then drop and grow ceil(f kept) of each."""
    schedule = optax.polynomial_schedule(start, 0.8, power=3, transition_steps=14)
    rule = jp.granet(
        KEY, schedule, optax.cosine_decay_schedule(0.5, 10, alpha=0.01), prunable=everything
    )
    first, asked, fraction = first_masks(rule), cubic(start, 0.8, 0, 14), cosine(0.5, 10, 0.01)
    found, _ = trained(jp.sparsify(sgd(), jp.every(3, rule, start=2, stop=7)))

    def update(step, masks, w, grads):
        at_end = step == 7  # the last update: to the final sparsity, though the schedule goes on
        scores = {n: np.where(masks[n], np.abs(x), -1.0) for n, x in w.items()}
        sparsity = 0.8 if at_end else asked(step)
        left = top_of_all(scores, kept_of(sparsity, sizes(scores)))
        left = {n: left[n] & masks[n] for n in left}
        promise = {n: np.abs(g) for n, g in grads.items()}
        share = fraction(1_000 if at_end else step)
        return rewired(left, w, promise, lambda kept: math.ceil(share * kept - 1e-7))

    wanted = sparse_training(first, update, lambda step: step in (2, 5, 7))
    compare(found, wanted)
    assert sum(m.sum() for m in found[-1][0].values()) == kept_of(0.8, sizes(START))
    assert moves(found) == 3


# --- dense where pruned --------------------------------------------------------------------------


@pytest.mark.parametrize("gradual", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_dpf(n, gradual):
    """Lin et al.: mask(w_t), the gradient at mask(w_t) w_t, a step of all of w_t."""
    schedule = optax.polynomial_schedule(0.1, 0.7, power=3, transition_steps=6)
    asked = cubic(0.1, 0.7, 0, 6) if gradual else lambda step: 0.7
    rule = jp.dpf(schedule if gradual else 0.7, prunable=everything)
    found, _ = trained(jp.keep_dense(sgd(), jp.every(n, rule)), sparse=False)
    w, optimizer, wanted = in_float64(START), Momentum(), []
    for step in range(STEPS + 1):
        if step % n == 0:
            scores = {m: np.abs(x) for m, x in w.items()}
            masks = top_of_all(scores, kept_of(asked(step), sizes(w)))
        wanted.append((masks, w))
        w = optimizer.step(w, slopes(masked(w, masks)))
    compare(found, wanted)
    assert moves(found) >= 3


@pytest.mark.parametrize("n", [1, 3])
def test_top_kast(n):
    """Jayakumar et al.: forward with A, the largest 1 - s; a step of B in full, with its decay."""
    decay, sparsity, backward = 0.3, 0.7, 0.4
    tx = jp.train_only(
        optax.chain(jp.dynamic.top_kast_decay(decay), sgd()),
        jp.every(n, jp.top_kast(sparsity, backward, prunable=everything)),
    )
    found, _ = trained(tx, sparse=False)
    w, optimizer, wanted = in_float64(START), Momentum(), []
    for step in range(STEPS + 1):
        if step % n == 0:
            in_a = {m: top(np.abs(x), kept_of(sparsity, x.size)) for m, x in w.items()}
            in_b = {m: top(np.abs(x), kept_of(backward, x.size)) for m, x in w.items()}
        wanted.append((in_a, w))
        grads = slopes(masked(w, in_a))
        for m, x in w.items():
            density = in_a[m].sum() / x.size
            grads[m] = grads[m] + decay * np.where(in_a[m], x, x / density)
        w = optimizer.step(w, grads, in_b)
    compare(found, wanted)
    assert moves(found) >= 3


# --- as the weights have it ----------------------------------------------------------------------


@pytest.mark.parametrize("norms", quick([(0.5, 1.0), (1.0, 2.0)]))
@pytest.mark.parametrize("scope", quick(["layer", "neuron", "global"]))
def test_sap(scope, norms):
    """Diao et al.: I = 1 - d^(1/q - 1/p) |w|_p / |w|_q, m weights must stay, c go."""
    (p, q), (eta, gamma, beta) = norms, (0.1, 0.8, 0.5)
    options = {"layer": {}, "neuron": {"axis": -1}, "global": {"together": True}}[scope]
    rule = jp.sap(p, q, eta, gamma, beta, prunable=everything, **options)
    found, _ = trained(jp.sparsify(sgd(), jp.every(2, rule)))

    def to_prune(w):
        d = len(w)
        of = lambda r: (np.abs(w) ** r).sum() ** (1 / r)
        index = 1 - d ** (1 / q - 1 / p) * of(p) / of(q)
        m = math.ceil(d * (1 + eta) ** (-q / (q - p)) * (1 - index) ** (p * q / (q - p)) - 1e-9)
        return math.floor(d * min(max(gamma * (1 - m / d), 0), beta) + 1e-9)

    def left(mask, w):
        kept = np.where(mask, np.abs(w), -1.0)
        return top(kept, int(mask.sum()) - to_prune(w[mask]))

    def update(step, masks, w, grads):
        if scope == "layer":
            return {n: left(masks[n], w[n]) for n in w}
        if scope == "neuron":
            columns = lambda n: zip(masks[n].T, w[n].T, strict=True)
            return {n: np.stack([left(m, x) for m, x in columns(n)], axis=1) for n in w}
        scores = {n: np.where(masks[n], np.abs(x), -1.0) for n, x in w.items()}
        alive = np.concatenate([w[n][masks[n]] for n in w])
        return top_of_all(scores, len(alive) - to_prune(alive))

    compare(found, sparse_training(all_true(), update, lambda step: step % 2 == 0))
    assert moves(found) >= 3


# --- at initialization ---------------------------------------------------------------------------

# two linear layers, without biases; half the mean squared error over six examples
NET = {"a": draws(3)["a"], "b": draws(4)["b"]}
X = np.random.default_rng(5).standard_normal((6, 6)).astype(np.float32)
Y = np.random.default_rng(6).standard_normal((6, 5)).astype(np.float32)


def net_loss(params):
    return jnp.sum((X @ params["a"] @ params["b"] - Y) ** 2) / (2 * len(X))


def net_slopes(w):
    error = (X @ w["a"] @ w["b"] - Y) / len(X)
    return {"a": X.T @ error @ w["b"].T, "b": (X @ w["a"]).T @ error}


def same_masks(found, wanted):
    for name, mask in wanted.items():
        np.testing.assert_array_equal(found[name], mask, err_msg=name)


def test_snip():
    """Lee et al.: |w dL/dw|, the largest of all layers together."""
    w = in_float64(NET)
    scores = {n: np.abs(w[n] * g) for n, g in net_slopes(w).items()}
    found = jp.at_init.snip(net_loss, NET, everything)
    for name, wanted in scores.items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-4, atol=1e-6)
    same_masks(jp.select(found, jp.global_threshold, 0.8), top_of_all(scores, kept_of(0.8, 88)))


def test_grasp():
    """Wang et al.: -w H g, of which the highest go."""
    w, step = in_float64(NET), 1e-4
    g = net_slopes(w)
    ahead, behind = (net_slopes({n: w[n] + e * g[n] for n in w}) for e in (step, -step))
    scores = {n: -w[n] * (ahead[n] - behind[n]) / (2 * step) for n in w}
    found = jp.at_init.grasp(net_loss, NET, everything)
    for name, wanted in scores.items():
        np.testing.assert_allclose(-found[name], wanted, rtol=1e-3, atol=1e-4)
    lowest = top_of_all({n: -s for n, s in scores.items()}, kept_of(0.8, 88))
    same_masks(jp.select(found, jp.global_threshold, 0.8), lowest)


def rounds(score, revive, sparsity, n):
    """Masks after n rounds that keep exp(t / n ln(1 - sparsity)) of all weights."""
    w, masks = in_float64(NET), all_true()
    for t in range(1, n + 1):
        scores = score(w, masks)
        if not revive:
            scores = {m: np.where(masks[m], s, -1.0) for m, s in scores.items()}
        masks = top_of_all(scores, kept_of(1 - (1 - sparsity) ** (t / n), sizes(w)))
    return masks


@pytest.mark.parametrize("method", ["force", "iter_snip"])
def test_force_and_iterative_snip(method):
    """De Jorge et al.: |w dL/dw at w m|, of dense w (FORCE) or of w m, which revives nothing."""

    def score(w, masks):
        g = net_slopes(masked(w, masks))
        return {n: np.abs(w[n] * g[n]) for n in w}

    found = getattr(jp.at_init, method)(net_loss, NET, 0.8, rounds=STEPS, prunable=everything)
    same_masks(found, rounds(score, method == "force", 0.8, STEPS))


def test_synflow():
    """Tanaka et al.: R = 1' |W| 1, score |w| dR/d|w|."""

    def score(w, masks):
        a, b = (np.abs(masked(w, masks)[n]) for n in "ab")
        return {"a": a * b.sum(1)[None], "b": b * a.sum(0)[:, None]}

    forward = lambda p: jnp.ones((1, 6)) @ p["a"] @ p["b"]
    found = jp.at_init.synflow(forward, NET, 0.8, rounds=STEPS, prunable=everything)
    same_masks(found, rounds(score, False, 0.8, STEPS))


# --- gates ---------------------------------------------------------------------------------------


def test_continuous_sparsification():
    """Savarese et al.: w sigmoid(b s) / sigmoid(s0), b from 1 to 200; then s <- min(b s, s0)."""
    s0, price, last = 0.05, 0.2, 200.0
    sigmoid = lambda x: (1 + np.tanh(x / 2)) / 2
    slope = optax.exponential_decay(1.0, STEPS - 1, last)

    def objective(learned, b):
        gate = jp.gates.continuous_sparsification(b, s0)
        gates = gate.sample(None, learned["s"])
        opened = sum(jnp.sum(p) for p in gate.p_open(learned["s"]).values())
        return loss(jp.apply_masks(learned["w"], gates)) + price * opened

    learned = {"w": START, "s": jp.gates.logits(START, logit=s0)}
    w, s = in_float64(START), {n: np.full(shape, s0) for n, shape in SHAPES.items()}
    step = jax.jit(
        lambda x, b: jax.tree.map(lambda p, g: p - 0.01 * g, x, jax.grad(objective)(x, b))
    )
    for t in range(2 * STEPS):
        if t == STEPS:  # another round
            assert 10 < sum((x > 0).sum() for x in s.values()) < 70
            for name, mask in jp.gates.threshold(learned["s"]).items():
                np.testing.assert_array_equal(mask, s[name] > 0)
            learned["s"] = jp.gates.rewound_logits(learned["s"], last, s0)
            s = {n: np.minimum(last * x, s0) for n, x in s.items()}
        b = last ** ((t % STEPS) / (STEPS - 1))
        learned = step(learned, slope(t % STEPS))
        g = slopes({n: w[n] * sigmoid(b * s[n]) / sigmoid(s0) for n in w})
        for n in w:
            p = sigmoid(b * s[n])
            of_p = g[n] * w[n] / sigmoid(s0) + price
            w[n], s[n] = w[n] - 0.01 * g[n] * p / sigmoid(s0), s[n] - 0.01 * of_p * b * p * (1 - p)
            np.testing.assert_allclose(learned["w"][n], w[n], rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(learned["s"][n], s[n], rtol=1e-3, atol=1e-3)
