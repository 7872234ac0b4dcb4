"""Gates of neurons and weights: budgets, hardening, and arms by themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from recipes import gates
from recipes.common import arms, data, flags, lanes, models
from recipes.reports import gates as report

WEIGHTS = 64 * 64 + 64 * 32 + 32 * 10
ARMS = ["dense", "neuron", "weight", "gmp"]


@pytest.mark.full
def test_the_budget_is_met(finished):
    arms = finished.summary["arms"]
    assert list(arms) == ARMS
    kept = round(0.3 * WEIGHTS)
    assert arms["gmp"]["kept_weights"] == [WEIGHTS - round(0.7 * WEIGHTS)] * 2
    for n in arms["weight"]["kept_weights"]:
        assert kept - 1 <= n <= kept
    for n in arms["neuron"]["kept_weights"]:
        assert 0.95 * kept < n <= kept  # whole neurons
    for arm in ("neuron", "weight"):
        assert 0 < arms[arm]["expected_kept"]["mean"] < 1
        assert len(arms[arm]["architectures"]) == 2


@pytest.mark.full
def test_gates_close_before_they_become_masks(finished):
    records = finished.records
    assert [record["step"] for record in records] == [4, 8, 12]
    for arm in ("neuron", "weight"):
        expected = np.asarray([record[arm]["expected"] for record in records])
        assert (expected[1] < expected[0]).all()
        assert [record[arm]["sparsity"][0] > 0 for record in records] == [False, False, True]
        np.testing.assert_allclose(np.sum(records[0][arm]["histogram"], 1), 1, rtol=1e-5)
        assert max(records[0][arm]["multiplier"]) > 0


@pytest.mark.full
def test_the_models_are_networks_without_gates(finished):
    for arm in ("neuron", "weight", "gmp"):
        params, _, masks = finished.model(arm)
        assert sorted(params) == ["Dense_0", "Dense_1", "Dense_2"]
        for layer in params:
            assert not params[layer]["kernel"][~masks[layer]["kernel"]].any()
    _, _, masks = finished.model("neuron")
    rows = np.asarray(masks["Dense_1"]["kernel"]).any(-1)  # (seeds, neurons)
    columns = np.asarray(masks["Dense_0"]["kernel"]).any(-2)
    np.testing.assert_array_equal(rows, columns)  # a neuron goes whole


# --- arms, by themselves --------------------------------------------------------------------------


def states(config, steps):
    """The state of the first arm with gates after each of so many steps, one seed."""
    digits = data.load("digits", train_examples=256)
    made = gates.arms(config, digits, steps)
    arm = made[next(arm for arm in made if arm.startswith(config.level[0]))]
    keys = lanes.seed_keys(0, 1)
    program = arms.program_of(arm, digits.train, 32, 1)
    first = arms.begin(arm, keys, digits.train.images)
    state = lanes.train(program, first, arms.seeds_of(keys), steps, lambda step, state: None)
    return arm, state


@pytest.mark.full
def test_gates_act_up_to_the_step_at_which_they_become_masks():
    plan = gates.Plan(
        gate=lambda step: jp.gates.hard_concrete(), above=0.0, target=lambda step: 0.3, final=0.3,
        fixed=None, harden=3, rate=0.1,
    )  # fmt: skip
    module, train = models.MLP((4,), 10), data.load("digits", train_examples=8).train
    structure = gates.analyzed(module, train.images)
    level = gates.weights(structure, gates.Config(open=0.0))
    arm = gates.gated(module, optax.sgd(0.1), level, plan)
    params = module.init(jax.random.key(0), train.images)["params"]
    learned, plain = arm.learned.start(params), models.classification(module)
    loss = lambda step: arm.learned.loss(learned, {}, *train, jnp.int32(step), jax.random.key(1))[0]
    expected = plain(params, {}, *train)[0]
    assert [float(loss(step)) == float(expected) for step in (2, 3, 4)] == [False, False, True]
    kernel = lambda step: arm.learned.network(learned, jnp.int32(step))["Dense_0"]["kernel"]
    same = [bool((kernel(step) == params["Dense_0"]["kernel"]).all()) for step in (2, 3, 4)]
    assert same == [False, False, True]


@pytest.mark.parametrize(
    ("model", "norm"),
    [
        ("mlp", "group"),
        ("conv", "batch"),
        pytest.param("conv", "group", marks=pytest.mark.full),
        pytest.param("resnet20", "batch", marks=pytest.mark.full),
        pytest.param("resnet20", "group", marks=pytest.mark.full),
    ],
)
def test_masks_of_neurons_compute_what_gates_of_0_and_1_do(model, norm):
    """So nothing changes at the step at which gates become masks, whatever the network."""
    images = data.load("digits", train_examples=8).train.images
    module = models.model(model, 10, norm, width=0.5)
    structure = gates.analyzed(module, images)
    level = gates.neurons(structure, gates.Config(budget="flops"))
    variables = module.init(jax.random.key(0), images)
    rest = {k: v for k, v in variables.items() if k != "params"}
    rng = np.random.default_rng(0)
    scores = {name: jnp.asarray(rng.uniform(size=s.shape)) for name, s in level.logits.items()}
    open_ = jp.gates.within_budget(jp.gates.keep_at_least(scores), level.kept, 0.5)
    params = variables["params"]
    under = level.under(params, jax.tree.map(jnp.float32, open_))
    masked = jp.apply_masks(params, level.masks(open_))
    outputs = [module.apply({"params": p, **rest}, images) for p in (params, under, masked)]
    np.testing.assert_allclose(outputs[1], outputs[2], rtol=1e-4, atol=1e-4)
    assert float(abs(outputs[0] - outputs[1]).max()) > 1e-2
    if model != "mlp":  # its pixels are no axis of the images
        kept = {group: open_[name] for name, group in gates.names(structure).items()}
        small = jp.compact(structure, {"params": masked, **rest}, kept)
        np.testing.assert_allclose(small.fn(small.params, images), outputs[2], rtol=1e-4, atol=1e-4)
        assert 0.3 < float(level.kept(open_)) <= 0.5


@pytest.mark.full
def test_a_family_with_a_schedule_learns_and_meets_the_budget():
    config = gates.Config(level=("neuron",), gate="continuous", kept=(0.3,), width=0.1, log_every=2)
    _, state = states(config, 6)
    masks = jp.get_masks(state.opt_state)
    kept = 1 - float(jp.sparsity(jax.tree.map(lambda m: m[0], masks)))
    assert 0.25 < kept <= 0.3
    assert float(np.ptp(state.params["gates"]["Dense_1"])) > 0


@pytest.mark.full
def test_a_consensus_is_one_network():
    config = gates.Config(level=("consensus",), kept=(0.3,), width=0.1, log_every=2)
    arm, state = states(config, 6)
    masks = jp.get_masks(state.opt_state)
    assert 0.2 < 1 - float(jp.sparsity(masks)) <= 0.3
    assert sorted(arms.network(arm, state)) == ["Dense_0", "Dense_1", "Dense_2"]
    maps = state.params["gates"]["Dense_1"]
    assert maps["kernel"].any()  # what each input wants was learned


@pytest.mark.full
@pytest.mark.parametrize("level", ["neuron", "consensus"])
def test_flops_of_a_residual_network_under_group_norm(level):
    own = {"model": "resnet20", "norm": "group", "budget": "flops", "kept": (0.3,), "log_every": 1}
    config = gates.Config(level=(level,), width=0.5, **own)
    flags.check(config)
    arm, state = states(config, 3)
    masks = jp.get_masks(state.opt_state)
    structure = gates.analyzed(arm.module, data.load("digits", train_examples=256).train.images)
    of_kernels = {"params": jax.tree.map(lambda m: m[0], gates.network_of(masks))}
    kept = jp.structured.kept(structure, of_kernels)
    cost = jp.structured.cost(structure, kept).flops / jp.structured.cost(structure).flops
    assert 0.15 < cost <= 0.3
    assert len(report.architectures(masks)[0].split("-")) == 22


@pytest.mark.full
def test_a_fixed_penalty_closes_gates_and_has_no_gmp():
    config = gates.Config(level=("weight",), penalty=100.0, width=0.1, log_every=2)
    digits = data.load("digits", train_examples=256)
    assert list(gates.arms(config, digits, 6)) == ["dense", "weight"]
    arm, state = states(config, 4)
    measured = jax.vmap(arm.learned.measure)(state.params, state.opt_state.step)
    assert float(measured["expected"][0]) < float(
        jp.gates.hard_concrete().p_open(np.float32(config.open))
    )
