"""Every form of a product with a sparse kernel is the masked product, and so are its gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.export.sparse import sparse_matmul
from jaxprune.fast.block_product import Blocks, by_share, reference, to_blocks, to_kernel


def bcsr(x, kernel, **how):
    return sparse_matmul(x, kernel)


# name -> (x, kernel in the form) -> product
BLOCK_FORMS = {
    "reference": reference,
    "by_rows": jp.fast.by_rows,
    "by_columns": jp.fast.by_columns,
    "unrolled": jp.fast.unrolled,
    "by_share": by_share,
}
FORMS = BLOCK_FORMS | {"bcsr": bcsr}
TRACED = [name for name in BLOCK_FORMS if name != "unrolled"]  # indices may be traced
SHAPES = {"even": (12, 8), "over the edge": (11, 7)}
H, W = 4, 2
CALL = "cpu_csr_sparse_dense_ffi"  # of JAX, without a promise for exported files


def kernel_and_mask(shape=(12, 8), blocks=True):
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal(shape).astype(np.float32)
    if not blocks:
        return jnp.asarray(kernel), rng.random(shape) < 0.3
    kept = rng.random((-(-shape[0] // H), -(-shape[1] // W))) < 0.5
    kept[:, 1] = False  # a block of outputs without a block
    mask = np.repeat(np.repeat(kept, H, 0), W, 1)[: shape[0], : shape[1]]
    return jnp.asarray(kernel), mask


def in_form(name, kernel, mask):
    """The kernel in a form, its trained values, and the kernel (in, out) of these."""
    if name == "bcsr":
        made = jp.export.to_bcsr({"w": kernel}, {"w": mask})["w"]
        leaves, treedef = jax.tree.flatten(made)
        build = lambda values: jax.tree.unflatten(treedef, [values, *leaves[1:]])
        return build, made.data, lambda values: build(values).todense()
    made = to_blocks(kernel, mask, H, W)
    build = lambda values: Blocks(values, made.inputs, made.shape)
    return build, made.values, lambda values: to_kernel(build(values))


@pytest.mark.full
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", FORMS)
def test_forward_and_gradients_are_those_of_the_masked_product(name, shape):
    kernel, mask = kernel_and_mask(shape)
    build, values, dense = in_form(name, kernel, mask)
    x = jax.random.normal(jax.random.key(1), (5, shape[0]))
    masked = jnp.where(mask, kernel, 0)
    np.testing.assert_array_equal(dense(values), masked)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)

    product = jax.jit(lambda x, values: FORMS[name](x, build(values)))
    close(product(x, values), x @ masked)
    slopes = jax.grad(lambda x, values: jnp.sin(product(x, values)).sum(), (0, 1))(x, values)
    wanted = jax.grad(lambda x, kernel: jnp.sin(x @ kernel).sum(), (0, 1))(x, masked)
    close(slopes[0], wanted[0])
    close(dense(slopes[1]), jnp.where(mask, wanted[1], 0))


@pytest.mark.parametrize("name", FORMS)
def test_vmap_is_a_loop(name):
    kernel, mask = kernel_and_mask()
    build, values, _ = in_form(name, kernel, mask)
    x = jax.random.normal(jax.random.key(1), (3, 5, 12))
    stack = jnp.stack([values, 2 * values, -values])
    lanes = jax.jit(jax.vmap(lambda x, values: FORMS[name](x, build(values))))(x, stack)
    for i in range(3):
        np.testing.assert_allclose(
            lanes[i], FORMS[name](x[i], build(stack[i])), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("name", FORMS)
def test_export_lowers_for_cpu_gpu_and_tpu(name):
    kernel, mask = kernel_and_mask()
    build, values, _ = in_form(name, kernel, mask)
    run = jax.jit(lambda x, values: FORMS[name](x, build(values)))
    platforms = ["cpu"] if name == "bcsr" else ["cpu", "cuda", "tpu"]
    allowed = [jax.export.DisabledSafetyCheck.custom_call(CALL)] if name == "bcsr" else []
    export = jax.export.export(run, platforms=platforms, disabled_checks=allowed)
    exported = export(jnp.ones((5, 12)), values)
    np.testing.assert_array_equal(
        exported.call(jnp.ones((5, 12)), values), run(jnp.ones((5, 12)), values)
    )


@pytest.mark.parametrize("name", TRACED)
def test_indices_may_be_traced(name):
    """One compiled product runs every mask with as many blocks."""
    made = [to_blocks(*kernel_and_mask(), H, W, slots=3)]
    made.append(Blocks(made[0].values, (made[0].inputs + 1) % 3, made[0].shape))
    product = jax.jit(FORMS[name])
    x = jax.random.normal(jax.random.key(1), (5, 12))
    for blocks in made:
        np.testing.assert_allclose(product(x, blocks), x @ to_kernel(blocks), rtol=1e-5, atol=1e-5)
    assert product._cache_size() == 1


def test_bfloat16_accumulates_as_it_is_told():
    kernel, mask = kernel_and_mask()
    blocks = to_blocks(kernel.astype(jnp.bfloat16), mask, H, W)
    x = jnp.ones((2, 12), jnp.bfloat16)
    for form in BLOCK_FORMS.values():
        assert form(x, blocks).dtype == jnp.bfloat16
        assert form(x, blocks, preferred_element_type=jnp.float32).dtype == jnp.float32


# --- blocks --------------------------------------------------------------------------------------


def test_blocks_by_hand():
    kernel = jnp.arange(16.0).reshape(4, 4)
    mask = np.zeros((4, 4), bool)
    mask[2:, :2] = True  # inputs 2, 3 -> outputs 0, 1
    blocks = to_blocks(kernel, mask, 2, 2)
    assert blocks.values.tolist() == [[[[8.0, 9.0], [12.0, 13.0]]], [[[0.0, 0.0], [0.0, 0.0]]]]
    assert blocks.inputs.tolist() == [[1], [2]]  # 2 is one past the last: an empty slot
    assert jp.fast.by_rows(jnp.ones((1, 4)), blocks).tolist() == [[20.0, 22.0, 0.0, 0.0]]


def test_a_block_that_is_kept_in_part_has_zeros():
    kernel, mask = kernel_and_mask(blocks=False)
    np.testing.assert_array_equal(
        to_kernel(to_blocks(kernel, mask, H, W)), jnp.where(mask, kernel, 0)
    )


def test_too_few_slots_and_traced_masks_say_the_way_out():
    kernel, mask = kernel_and_mask()
    with pytest.raises(ValueError, match=r"keeps 3 blocks, and there are 1 slots. Give slots=3"):
        to_blocks(kernel, mask, H, W, slots=1)
    with pytest.raises(ValueError, match=r"it is traced. Give slots="):
        jax.jit(lambda mask: to_blocks(kernel, mask, H, W).values)(mask)
    with pytest.raises(ValueError, match=r"takes a kernel \(in, out\).*\(2, 3, 4\)"):
        to_blocks(jnp.ones((2, 3, 4)), np.ones((2, 3, 4), bool), H, W)


def test_unrolled_needs_known_indices():
    blocks = to_blocks(*kernel_and_mask(), H, W)
    with pytest.raises(ValueError, match=r"indices of the blocks are traced.*by_rows"):
        jax.jit(jp.fast.unrolled)(jnp.ones((1, 12)), blocks)


def test_many_blocks_are_a_dense_product_and_few_are_gathered():
    x, kernel = jnp.ones((2, 16)), jnp.ones((16, 16))
    programs = []
    for n in (2, 1):  # of 4 blocks of inputs
        mask = jnp.repeat(jnp.repeat(jnp.arange(4)[:, None] < n, 4, 0), 16, 1)
        blocks = to_blocks(kernel, mask, 4, 4)
        programs.append(str(jax.make_jaxpr(by_share)(x, blocks)))
        form = reference if n == 2 else jp.fast.by_columns
        assert programs[-1] == str(jax.make_jaxpr(form)(x, blocks))
    assert programs[0] != programs[1]


@pytest.mark.parametrize("name", ["by_rows", "by_columns", "unrolled"])
def test_inputs_of_another_size_are_refused(name):
    blocks = to_blocks(*kernel_and_mask((11, 8)), H, W)
    for shape in ((5, 12), (2, 5, 11)):  # 12 would fit the padded kernel
        with pytest.raises(ValueError, match=rf"{name}: x is \(n, in\), here \(n, 11\)"):
            BLOCK_FORMS[name](jnp.ones(shape), blocks)
    with pytest.raises(ValueError, match=r"positive integers; got 0, 2"):
        to_blocks(*kernel_and_mask(), 0, W)
