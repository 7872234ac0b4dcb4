"""Steps lower for TPUs and GPUs on a machine that has neither, and nothing is ever float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export
from jax.sharding import AxisType

import jaxprune as jp
from jaxprune.structured import Removal
from recipes import block_training, dynamic, gates, gmp, nm, relaxation, soup
from recipes.common import arms, lanes, models
from recipes.common.data import Dataset, Split
from recipes.sharded import decoder
from tests.quick import quick
from tests.transforms import DENSE_WEIGHTS, TRANSFORMS, loss, tiny_params

PLATFORMS = ("cpu", "cuda", "tpu")
DYNAMIC = dynamic.Config()
GATES = gates.Config()
N_OF_M = nm.Config(hidden=(32,), patterns=("2:4",), method=("bdwp",))
BLOCKS = block_training.Config(hidden=(32,), blocks=("8x8",))


def lower(f, *args):
    """Lowers for all platforms, from shapes alone; AssertionError if anything is float64."""
    shapes = jax.eval_shape(lambda: args)
    exported = export.export(jax.jit(f), platforms=PLATFORMS)(*shapes)
    assert exported.platforms == PLATFORMS
    text = exported.mlir_module()
    assert "f32>" in text
    assert "f64>" not in text


@pytest.mark.full
@pytest.mark.parametrize(
    "transform", quick(TRANSFORMS, "gradual_global", "lamp", "two_of_four", "sap", "rigl")
)
def test_a_step_of_every_transform_over_seeds(transform):
    params = tiny_params()
    tx = jp.sparsify(optax.adamw(1e-3), TRANSFORMS[transform](params))

    def step(params, opt_state):
        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    stack = jax.tree.map(lambda x: jnp.stack([x, x]), (params, tx.init(params)))
    lower(jax.vmap(step), *stack)


@pytest.mark.parametrize("method", DENSE_WEIGHTS)
def test_a_step_of_every_transform_whose_weights_stay_dense(method):
    params = tiny_params()
    tx = DENSE_WEIGHTS[method](params, optax.adamw(1e-3))
    lower(lambda p, state: tx.update(jax.grad(loss)(p), state, p), params, tx.init(params))


def digits():
    images = np.zeros((8, 8, 8, 1), np.float32)
    split = Split(images, np.zeros(8, np.int32))
    return Dataset(split, split, 10, np.zeros(1), np.ones(1))


def of_models():
    """The convolutional one with the recipes' own convolution, its gradient and its seeds."""
    for model in ("lenet", "conv"):
        tx = gmp.gradual(optax.adam(1e-3), 100, 0.9, 10)
        arm = arms.Arm(models.model(model, 10), tx, arms.Weights.SPARSE)
        yield model, arm


STEPS = {  # what recipes train, by recipe and arm
    **{f"gmp {name}": arm for name, arm in of_models()},
    **{f"dynamic {name}": arm for name, arm in dynamic.arms(DYNAMIC, digits(), 100).items()},
    **{
        f"block_training {name}": arm
        for name, arm in block_training.arms(BLOCKS, digits(), 100).items()
        if arm.blocks
    },
    **{f"gates {name}": arm for name, arm in gates.arms(GATES, digits(), 100).items()},
    "nm bdwp": nm.arms(N_OF_M, digits(), 100)["bdwp 2:4"],
}


@pytest.mark.full
@pytest.mark.parametrize("name", quick(STEPS, "gmp lenet", "block_training rigl 8x8"))
def test_a_step_of_a_recipe(name):
    arm, images = STEPS[name], digits().train.images
    keys = lanes.seed_keys(0, 2)
    state = jax.eval_shape(lambda: arms.begin(arm, keys, images))
    order = jnp.zeros((3, 2, 4), jnp.int32)
    step = arms.program_of(arm, digits().train, 4, 3).step
    lower(lanes.chunk(step), state, digits().train, order, arms.seeds_of(keys))


def test_a_step_of_lanes():
    """What soups, forks, tickets and structured pruning train, with running statistics."""
    by_rates = soup.optimizer_of(soup.Config(optimizer="sgd"))
    module = models.model("conv", 10, "batch", 0.25)
    program = lanes.program(module, by_rates, digits().train, 4, 3)
    lane = lanes.Lane(lanes.seed_keys(0, 2), jnp.ones((2, 5)), jnp.zeros(2))
    begun = lambda: lanes.begin(program, lanes.initial(program, lane.order), lane)
    order = jnp.zeros((3, 2, 4), jnp.int32)
    lower(lanes.chunk(program.step), jax.eval_shape(begun), digits().train, order, lane)


def test_a_step_with_relaxed_widths():
    config = relaxation.Config(width=0.125, seeds=2, steps=30, batch_size=4)
    s = relaxation.study_of(config, digits())
    groups = s.neurons.structure.groups
    everything = {name: np.ones(own.size, bool) for name, own in groups.items()}
    lane = relaxation.lane_of(s, s.stages[1], [Removal(everything, ())] * len(s.budgets))

    def begun():
        params, batch_stats, *_ = relaxation.untrained(s)
        return lanes.begin(s.program, lanes.Network(params, batch_stats, None), lane)

    order = jnp.zeros((2, len(s.budgets), 4), jnp.int32)
    lower(lanes.chunk(s.program.step), jax.eval_shape(begun), digits().train, order, lane)


def test_a_step_of_a_decoder():
    """Scan over layers, recomputed on the way back, in bfloat16; on a mesh, as it is compiled."""
    sizes = decoder.Sizes(layers=2, width=16, heads=2, hidden=32, words=64)
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), decoder.shapes(sizes))
    mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        step = jax.grad(lambda p, tokens: decoder.loss(sizes, p, tokens))
        lower(step, params, jnp.zeros((1, 9), jnp.int32))


def test_finding_masks_and_counting_them():
    params = tiny_params()

    def whole(params):
        masks = jp.select(jp.lamp()(jp.kernels(params)), jp.global_threshold, 0.5)
        return jp.sparsity(masks), jp.overlap(masks, masks), jp.export.pack(masks)

    lower(whole, params)
