"""Eight CPU devices, no silent broadcasting, and the small params that the tests share."""

import gc
import importlib.metadata
import os
import tempfile
import zlib

# Tests compile far more than they compute: machine code need not be fast. XLA's older emitters
# take less than half the time of its fusion emitters; jaxlib 0.11 has them no longer.
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_use_fusion_emitters=false"
        if importlib.metadata.version("jaxlib").startswith("0.10.")
        else "",
    )
)

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

# What one file compiled and freed the next one reads back. A folder for each process: JAX does not
# write its entries atomically.
# JAX_COMPILATION_CACHE_DIR names one that lasts, for one process at a time.
if not jax.config.jax_compilation_cache_dir:
    programs = tempfile.TemporaryDirectory(prefix="jaxprune-tests-")
    jax.config.update("jax_compilation_cache_dir", programs.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_collection_modifyitems(config, items):
    """Of the tests marked `full` one turn stays where JAXPRUNE_TURN names it: "0/3" of three.

    Tests of a file with the same parameters have the same turn, since they share what they run.
    """
    turn, turns = map(int, os.environ.get("JAXPRUNE_TURN", "0/1").split("/"))

    def is_later(item):
        shared = f"{item.path.name} {item.callspec.id if hasattr(item, 'callspec') else ''}"
        return item.get_closest_marker("full") and zlib.crc32(shared.encode()) % turns != turn

    if later := [item for item in items if is_later(item)]:
        config.hook.pytest_deselected(items=later)
        items[:] = [item for item in items if not is_later(item)]


def pytest_collection_finish():
    """What is imported stays to the end: the garbage collector need not look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Frees what a file compiled: a process has room for some thousands of programs only.

    Linux maps at most 65,530 pieces of memory (vm.max_map_count); past that XLA crashes.
    """
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def params():
    """A small MLP as flax writes it: two kernels (32 and 16 weights), two biases."""
    keys = jax.random.split(jax.random.key(0), 4)
    return {
        "Dense_0": {
            "kernel": jax.random.normal(keys[0], (4, 8)),
            "bias": jax.random.normal(keys[1], (8,)),
        },
        "Dense_1": {
            "kernel": jax.random.normal(keys[2], (8, 2)),
            "bias": jax.random.normal(keys[3], (2,)),
        },
    }


@pytest.fixture
def grads(params):
    """Gradients that differ from weight to weight, like `params`."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(treedef, drawn)


@pytest.fixture
def mesh():
    """Eight devices in a row."""
    return jax.make_mesh((8,), ("d",))
