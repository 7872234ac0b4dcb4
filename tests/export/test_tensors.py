"""Safetensors of a sparse network: there and back, small, whole or absent."""

import json
import os
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxprune as jp
from jaxprune.export.tensors import rendered


def network(dtype=jnp.float32):
    kernel = jax.random.normal(jax.random.key(0), (64, 50), dtype)
    params = {"Dense_0": {"kernel": kernel, "bias": jnp.arange(50, dtype=dtype)}}
    return params, jp.select(jp.magnitude(jp.kernels(params)), jp.global_threshold, 0.9)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=str)
def test_there_and_back(tmp_path, dtype):
    params, masks = network(dtype)
    path = jp.export.save_tensors(tmp_path / "net.safetensors", params, masks)
    loaded, loaded_masks = jp.export.load_tensors(path)
    jax.tree.map(np.testing.assert_array_equal, loaded, jp.apply_masks(params, masks))
    jax.tree.map(np.testing.assert_array_equal, loaded_masks, masks)
    assert loaded_masks["Dense_0"]["bias"] is None
    assert loaded["Dense_0"]["kernel"].dtype == dtype
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.json", "net.safetensors"]


def test_a_masked_weight_takes_a_bit(tmp_path):
    params, masks = network()
    path = jp.export.save_tensors(tmp_path / "net.safetensors", params, masks)
    assert path.stat().st_size < 320 * 4 + 3200 // 8 + 50 * 4 + 500  # kept, bits, bias, header


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    params, masks = network()
    path = jp.export.save_tensors(tmp_path / "net.safetensors", params, masks)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        jp.export.save_tensors(path, jax.tree.map(lambda w: w + 1, params), masks)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_mistakes_in_saving(tmp_path):
    params, masks = network()
    with pytest.raises(ValueError, match=r"ends in \.safetensors; got '.*net\.bin'"):
        jp.export.save_tensors(tmp_path / "net.bin", params, masks)
    with pytest.raises(ValueError, match=r"the path \[\(1, 2\)\] has DictKey\(key=\(1, 2\)\)"):
        jp.export.save_tensors(tmp_path / "net.safetensors", {(1, 2): jnp.ones(2)})
    with pytest.raises(ValueError, match=r"'key' is key<fry>, .* jax\.random\.key_data"):
        jp.export.save_tensors(tmp_path / "net.safetensors", {"key": jax.random.key(0)})
    # without jax_enable_x64 the first would be 1, and the second another float
    for own, narrow in ((np.int64(2**40 + 1), "int32"), (np.array([0.1]), "float32")):
        with pytest.raises(ValueError, match=f"'w' is .*64, and JAX would make it {narrow}, which"):
            jp.export.save_tensors(tmp_path / "net.safetensors", {"w": own})
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_64_bits_that_32_hold_are_saved(tmp_path):
    """As numpy makes them."""
    params = {"n": np.array([2, 3]), "w": np.array([0.5, np.nan]), "python": 0.1}
    back, _ = jp.export.load_tensors(jp.export.save_tensors(tmp_path / "net.safetensors", params))
    assert {k: str(v.dtype) for k, v in back.items()} == {
        "n": "int32",
        "w": "float32",
        "python": "float32",
    }
    assert back["n"].tolist() == [2, 3] and back["w"][0] == 0.5 and jnp.isnan(back["w"][1])


def spoil(path, change):
    beside = path.with_suffix(".json")
    content = json.loads(beside.read_text())
    change(content)
    beside.write_text(rendered(content))


WRONG = {
    r"only one of them has 'Dense_1/kernel'": lambda c: c["tensors"].update(
        {"Dense_1/kernel": c["tensors"]["Dense_0/bias"]}
    ),
    r"keeps 319 weights of float32; .* has 320": lambda c: c["tensors"]["Dense_0/kernel"].update(
        kept=319
    ),
    r"is not one of shape \(64, 49\) that keeps 320 weights": lambda c: c["tensors"][
        "Dense_0/kernel"
    ].update(shape=[64, 49]),
    r"'Dense_0/bias' has shape \(5, 11\); in '.*' it has 50 weights": lambda c: c["tensors"][
        "Dense_0/bias"
    ].update(shape=[5, 11]),
    r"its checksum is another": lambda c: c.update(file="0" * 64),
    r"no description that save_tensors wrote: '64x50' is no shape": lambda c: c["tensors"][
        "Dense_0/kernel"
    ].update(shape="64x50"),
    r"it is of format 'other'": lambda c: c.update(format="other"),
    r"no description that save_tensors wrote": lambda c: c.pop("tensors"),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_description(tmp_path, message):
    path = jp.export.save_tensors(tmp_path / "net.safetensors", *network())
    spoil(path, WRONG[message])
    with pytest.raises(ValueError, match=message):
        jp.export.load_tensors(path)


def test_a_mask_that_keeps_another_number_is_named(tmp_path):
    params = {"a": jnp.arange(8.0), "b": jnp.arange(8.0)}
    masks = {"a": params["a"] > 2, "b": params["b"] > 3}
    path = jp.export.save_tensors(tmp_path / "net.safetensors", params, masks)
    spoil(path, lambda c: c["tensors"]["a"].update(mask="mask of b"))
    spoil(path, lambda c: c["tensors"]["b"].update(mask="mask of a"))
    with pytest.raises(ValueError, match=r"mask of 'a' .* shape \(8,\) that keeps 5 weights"):
        jp.export.load_tensors(path)


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_file_that_was_cut(tmp_path, size):
    path = jp.export.save_tensors(tmp_path / "net.safetensors", *network())
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"net\.safetensors' is damaged, or no safetensors"):
        jp.export.load_tensors(path)


def test_a_missing_description(tmp_path):
    path = jp.export.save_tensors(tmp_path / "net.safetensors", *network())
    path.with_suffix(".json").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no '.*net\.json'"):
        jp.export.load_tensors(path)


# --- any tree, any dtype -------------------------------------------------------------------------


class Pair(NamedTuple):
    kernel: jax.Array
    value: jax.Array


W = jnp.arange(1.0, 17).reshape(4, 4)
TREES = {
    "leaves called value": {"x": {"value": W}, "y": {"value": W, "z": W}, "value": W},
    "twins as text": {"a/w": W, "a": {"w": -W}},
    "haiku": {"mlp/~/linear_0": {"w": W, "b": jnp.ones(4)}},
    "a leaf called like a mask": {"a": W, "mask of a": -W},
    "lists and tuples": [W, ({"w": W},), [], (), {"e": {}}, None],
    "numbers as keys": {"layers": {i: {"kernel": (i + 1) * W} for i in range(11)}},
    "a bare array": W,
    "a masked scalar": {"temperature": jnp.float32(0.5), "w": W},
    "nothing in it": {"w": jnp.ones((0, 3)), "v": W},
    "WeightNorm": nn.WeightNorm(nn.Dense(4)).init(jax.random.key(0), jnp.ones((1, 4))),
}


def as_lists(tree):
    """Tuples are lists in JSON."""
    if isinstance(tree, dict):
        return {key: as_lists(own) for key, own in tree.items()}
    return [as_lists(own) for own in tree] if isinstance(tree, (list, tuple)) else tree


@pytest.mark.parametrize("kind", TREES)
def test_any_tree_comes_back(kind, tmp_path):
    tree = TREES[kind]
    masks = jax.tree.map(lambda w: (w > 5) | (w < -9), tree)
    loaded, loaded_masks = jp.export.load_tensors(
        jp.export.save_tensors(tmp_path / "a.safetensors", tree, masks)
    )
    wanted = as_lists(jp.apply_masks(tree, masks))
    assert jax.tree.structure(loaded) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, loaded, wanted)
    jax.tree.map(np.testing.assert_array_equal, loaded_masks, as_lists(masks))


def test_fields_come_back_as_names(tmp_path):
    loaded, _ = jp.export.load_tensors(
        jp.export.save_tensors(tmp_path / "a.safetensors", Pair(W, -W))
    )
    jax.tree.map(np.testing.assert_array_equal, loaded, {"kernel": W, "value": -W})


@pytest.mark.parametrize(
    "dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.float8_e4m3b11fnuz, jnp.int4, bool, jnp.int8]
)
def test_any_dtype_comes_back(dtype, tmp_path):
    params = {"w": jnp.arange(-4, 4).astype(dtype).reshape(2, 4), "v": jnp.ones(3, dtype)}
    masks = {"w": jnp.arange(8).reshape(2, 4) % 3 > 0, "v": None}
    loaded, _ = jp.export.load_tensors(
        jp.export.save_tensors(tmp_path / "a.safetensors", params, masks)
    )
    wanted = jp.apply_masks(params, masks)
    for name, w in wanted.items():
        assert loaded[name].dtype == dtype
        np.testing.assert_array_equal(loaded[name], w)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])


def test_a_network_of_nnx_comes_back_into_its_module(tmp_path):
    state = nnx.state(Net(nnx.Rngs(0)), nnx.Param)
    masks = jp.select(jp.magnitude(jp.kernels(state)), jp.uniform, 0.5)
    loaded, loaded_masks = jp.export.load_tensors(
        jp.export.save_tensors(tmp_path / "a.safetensors", state, masks)
    )
    assert sorted(loaded["layers"]) == [0, 1]
    model = Net(nnx.Rngs(1))
    fresh = nnx.state(model, nnx.Param)
    nnx.replace_by_pure_dict(fresh, loaded)
    nnx.update(model, fresh)
    wanted = jp.apply_masks(state, masks)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model, nnx.Param), wanted)
    assert float(jp.overlap(loaded_masks, nnx.to_pure_dict(masks))) == 1


# --- damage, and what is there already -----------------------------------------------------------


def test_any_bit_that_flips_is_seen(tmp_path):
    params = {"w": jnp.arange(1.0, 5), "b": jnp.ones(1)}
    path = jp.export.save_tensors(
        tmp_path / "a.safetensors", params, {"w": params["w"] > 2, "b": None}
    )
    for part in (path, path.with_suffix(".json")):
        whole = part.read_bytes()
        for place in range(len(whole)):
            spoiled = bytearray(whole)
            spoiled[place] ^= 1 << (place % 8)
            part.write_bytes(spoiled)
            with pytest.raises(ValueError, match="load_tensors"):
                jp.export.load_tensors(path)
        part.write_bytes(whole)
    jp.export.load_tensors(path)


def test_a_file_and_a_description_of_two_saves_do_not_fit(tmp_path):
    first = jp.export.save_tensors(tmp_path / "a.safetensors", {"w": jnp.ones(2)})
    second = jp.export.save_tensors(tmp_path / "b.safetensors", {"w": 2 * jnp.ones(2)})
    os.replace(second, first)
    with pytest.raises(ValueError, match="of another save than"):
        jp.export.load_tensors(first)


@pytest.mark.parametrize("foreign", ['{"mine": 1}', "[1]", "no json", '{"format": "x"}'])
def test_what_is_no_description_is_not_overwritten(foreign, tmp_path):
    beside = tmp_path / "config.json"
    beside.write_text(foreign)
    with pytest.raises(FileExistsError, match=r"config\.json'.* Choose another name than config\."):
        jp.export.save_tensors(tmp_path / "config.safetensors", {"w": jnp.ones(2)})
    assert beside.read_text() == foreign and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("fails_at", [0, 1])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_replacement_that_fails_leaves_both_as_they_were(
    is_first, fails_at, tmp_path, monkeypatch
):
    path, before = tmp_path / "a.safetensors", {}
    if not is_first:
        jp.export.save_tensors(path, {"w": jnp.ones(2)})
        before = {own.name: own.read_bytes() for own in tmp_path.iterdir()}
    replace, calls = os.replace, []

    def fails(source, target):
        calls.append(target)
        if len(calls) == fails_at + 1:
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(OSError, match="Input/output"):
        jp.export.save_tensors(path, {"w": 2 * jnp.ones(2)})
    monkeypatch.undo()
    assert {own.name: own.read_bytes() for own in tmp_path.iterdir()} == before


def test_who_waits_for_the_tensors_finds_both(tmp_path, monkeypatch):
    path, replace, seen = tmp_path / "a.safetensors", os.replace, []

    def watched(source, target):
        replace(source, target)
        if path.exists():
            seen.append(jp.export.load_tensors(path)[0]["w"].tolist())

    monkeypatch.setattr("os.replace", watched)
    jp.export.save_tensors(path, {"w": jnp.ones(2)})
    assert seen == [[1.0, 1.0]]
