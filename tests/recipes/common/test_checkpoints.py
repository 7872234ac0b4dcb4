"""Checkpoints of runs: whole or absent, checked when read, and readable without a template."""

import errno
import os
import resource
import shutil
from contextlib import closing, contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import jaxprune as jp
from recipes.common import checkpoints
from recipes.common.checkpoints import Checkpoints
from recipes.common.folder import RecipeError

TREE = {"x": np.arange(1000, dtype=np.float32), "mask": np.arange(10) > 3}


def save(folder, *steps, tree=TREE, about=None):
    with closing(Checkpoints(folder)) as kept:
        for step in steps:
            kept.save(step, {"all": tree}, about or {})


def load(folder):
    with closing(Checkpoints(folder)) as kept:
        return kept.load()


@pytest.fixture(scope="module")
def state():
    params = stacked_params()
    tx = jp.sparsify(optax.adam(1e-3), jp.prune(jp.magnitude, jp.uniform, 0.5))
    opt_state = jax.vmap(tx.init)(params)
    return {"params": params, "opt_state": jax.vmap(tx.update)(params, opt_state, params)[1]}


@pytest.mark.full
def test_an_optimizer(tmp_path, state):
    save(tmp_path, 7, tree=state, about={"metrics": [{"step": 7}]})
    saved = load(tmp_path)
    assert (saved.step, saved.about) == (7, {"metrics": [{"step": 7}]})
    assert_equal(saved.like("all", jax.tree.map(jnp.zeros_like, state)), state)
    assert_equal(saved.like("all", jax.eval_shape(lambda: state)), state)


def test_masks_of_a_bare_restore(tmp_path, state):
    """Nothing is known but the folder: neither the optimizer nor a shape."""
    save(tmp_path, 7, tree=state)
    with ocp.CheckpointManager(tmp_path, item_names=("tree", "about")) as manager:
        args = ocp.args.Composite(tree=ocp.args.StandardRestore())
        bare = manager.restore(7, args=args)["tree"]["all"]
    masks = jp.export.unpack(jp.get_masks(bare["opt_state"]), bare["params"])
    assert_equal(masks, jp.get_masks(state["opt_state"]))


def test_what_is_saved_may_be_donated(tmp_path):
    x = jnp.arange(1_000_000.0)
    with closing(Checkpoints(tmp_path)) as kept:
        kept.save(1, {"all": {"x": x}}, {})
        for _ in range(5):
            x = jax.jit(lambda x: x + 1, donate_argnums=0)(x)
    np.testing.assert_array_equal(load(tmp_path).tree["all"]["x"], np.arange(1_000_000.0))


def test_the_last_two_are_kept(tmp_path):
    save(tmp_path, 8, 9, 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "9"]
    assert load(tmp_path).step == 10


def test_no_checkpoint(tmp_path):
    assert load(tmp_path) is None
    with pytest.raises(RecipeError, match=r"there is no checkpoint '.*12'"):
        checkpoints.read(tmp_path / "12")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    save(folder, 3, 4, about={"metrics": ["a line"] * 50})
    return folder


def spoil(path, how):
    content = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["cut", "flip", "missing"])
@pytest.mark.parametrize(
    "file", ["data", "tree/manifest.ocdbt", "tree/_METADATA", "about/metadata"]
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, capfd, two, file, how):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "4" / file
    if file == "data":  # the largest of its files
        path = max((tmp_path / "4").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    spoil(path, how)
    saved = load(tmp_path)
    assert saved.step == 3
    assert_equal(saved.like("all", TREE), TREE)
    said = capfd.readouterr().err
    assert f"the checkpoint '{tmp_path}/4' is damaged (" in said
    assert f"going on from '{tmp_path}/3'" in said
    save(tmp_path, 4)  # it is not in the way
    assert load(tmp_path).step == 4


def test_what_a_checkpoint_says_of_itself_has_a_checksum_too(tmp_path, capsys, two):
    """Another step, in JSON that can be read: a run that goes on would train from there."""
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "4" / "about" / "metadata"
    file.write_text(file.read_text().replace("a line", "a lime", 1))
    assert load(tmp_path).step == 3
    assert "'about' is not what was written" in capsys.readouterr().err


def test_all_are_damaged(tmp_path, two, capsys):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    for step in ("3", "4"):
        shutil.rmtree(tmp_path / step / "tree")
    with pytest.raises(RecipeError, match="can be read; start anew with --overwrite"):
        load(tmp_path)
    assert "there is none before it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({**TREE, "x": np.zeros(3, np.float32)}, r"'x' is float32 \(1000,\) there and float32 \(3"),
        ({**TREE, "x": np.zeros(1000, np.int32)}, r"'x' is float32 .* there and int32 \(1000,\)"),
        ({**TREE, "y": {"z": np.zeros(3)}}, "it has no 'y/z'"),
        ({"x": TREE["x"]}, "it has 'mask', which is not needed here"),
    ],
)
def test_another_structure(two, other, message):
    with pytest.raises(RecipeError, match=f"of another network or optimizer: {message}"):
        load(two).like("all", other)


@contextmanager
def no_room_for_folders(monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", full)
        yield


@contextmanager
def no_room_for_files(monkeypatch):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("full", [no_room_for_folders, no_room_for_files])
def test_a_full_disk(tmp_path, monkeypatch, full):
    save(tmp_path, 1)
    kept = Checkpoints(tmp_path)
    noise = {"x": np.random.default_rng(0).standard_normal(100_000)}  # nothing to compress
    with full(monkeypatch), pytest.raises(RecipeError, match=r"can't be written .* --resume"):
        kept.save(2, {"all": noise}, {})
        kept.wait()
    saved = load(tmp_path)
    assert saved.step == 1
    assert_equal(saved.like("all", TREE), TREE)
    save(tmp_path, 2)
    assert load(tmp_path).step == 2


def stacked_params():
    keys = jax.random.split(jax.random.key(0), 3)  # 3 seeds of 35 weights: 105 is no multiple of 8
    return {
        "kernel": jax.vmap(lambda k: jax.random.normal(k, (5, 7)))(keys),
        "bias": jnp.ones((3, 7)),
    }


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert jax.tree.map(lambda x: x.dtype, a) == jax.tree.map(lambda x: x.dtype, b)


def test_pack_is_one_bit_per_bool_and_undone_by_unpack():
    tree = {"mask": jax.random.bernoulli(jax.random.key(0), 0.3, (5, 7)), "flag": jnp.array(True)}
    tree |= {"none": None, "weights": jnp.arange(3.0), "small": jnp.ones(3, jnp.bfloat16)}
    tree |= {"numbers": np.array([0.1, 0.2])}  # float64: no array of JAX would hold it
    packed = checkpoints.pack(tree)
    assert packed["mask"].shape == (5,)
    assert packed["mask"].dtype == jnp.uint8
    assert_equal(checkpoints.unpack(packed, tree), tree)
    shapes = jax.tree.map(checkpoints.packed_shape, tree)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), packed, shapes)
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_are_packed_as_their_data(impl):
    keys = jax.random.split(jax.random.key(3, impl=impl), 2)
    packed = checkpoints.pack({"keys": keys})["keys"]
    assert packed.dtype == np.uint32
    assert packed.shape == checkpoints.packed_shape(keys).shape
    unpacked = checkpoints.unpack({"keys": packed}, {"keys": keys})["keys"]
    assert (unpacked == keys).all()


def test_model(tmp_path):
    params = stacked_params()
    masks = {"kernel": params["kernel"] > 0, "bias": None}
    batch_stats = {"norm": {"mean": jnp.arange(3.0)}}
    checkpoints.save_model(tmp_path / "model", params, batch_stats, masks)
    assert_equal(checkpoints.load_model(tmp_path / "model"), (params, batch_stats, masks))


def test_a_model_on_a_full_disk_is_told_in_a_line(tmp_path):
    """What was there before is left, and nothing beside it."""
    noise = {"kernel": np.random.default_rng(0).standard_normal(100_000)}  # nothing to compress
    masks = {"kernel": noise["kernel"] > 0}
    checkpoints.save_model(tmp_path / "model", masks, {}, masks)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(
            RecipeError, match=r"^can't write '.*other': File too large; .*--resume"
        ):
            checkpoints.save_model(tmp_path / "other", noise, {}, masks)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_without_running_statistics_replaces_another(tmp_path):
    params = stacked_params()
    masks = {"kernel": params["kernel"] > 0, "bias": None}
    for stats in ({"norm": jnp.ones(2)}, {}):
        checkpoints.save_model(tmp_path / "model", params, stats, masks)
    assert checkpoints.load_model(tmp_path / "model")[1] == {}


def test_a_missing_model(tmp_path):
    with pytest.raises(RecipeError, match=r"there is no model in '.*here'"):
        checkpoints.load_model(tmp_path / "here")
