"""Safetensors of a sparse network: there and back, small, whole or absent."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp


def network(dtype=jnp.float32):
    kernel = jax.random.normal(jax.random.key(0), (64, 50), dtype)
    params = {"Dense_0": {"kernel": kernel, "bias": jnp.arange(50, dtype=dtype)}}
    return params, jp.select(jp.magnitude(jp.kernels(params)), jp.global_threshold, 0.9)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=str)
def test_there_and_back(tmp_path, dtype):
    params, masks = network(dtype)
    path = jp.save_tensors(tmp_path / "net.safetensors", params, masks)
    loaded, loaded_masks = jp.load_tensors(path)
    jax.tree.map(np.testing.assert_array_equal, loaded, jp.apply_masks(params, masks))
    jax.tree.map(np.testing.assert_array_equal, loaded_masks, masks)
    assert loaded_masks["Dense_0"]["bias"] is None
    assert loaded["Dense_0"]["kernel"].dtype == dtype
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.json", "net.safetensors"]


def test_a_masked_weight_takes_a_bit(tmp_path):
    params, masks = network()
    path = jp.save_tensors(tmp_path / "net.safetensors", params, masks)
    assert path.stat().st_size < 320 * 4 + 3200 // 8 + 50 * 4 + 500  # kept, bits, bias, header


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    params, masks = network()
    path = jp.save_tensors(tmp_path / "net.safetensors", params, masks)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        jp.save_tensors(path, jax.tree.map(lambda w: w + 1, params), masks)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_mistakes_in_saving(tmp_path):
    params, masks = network()
    with pytest.raises(ValueError, match=r"ends in \.safetensors; got '.*net\.bin'"):
        jp.save_tensors(tmp_path / "net.bin", params, masks)
    with pytest.raises(ValueError, match=r"nested dicts whose names are strings"):
        jp.save_tensors(tmp_path / "net.safetensors", [jnp.ones((2, 2))], [None])
    with pytest.raises(ValueError, match=r"without a '/'"):
        jp.save_tensors(tmp_path / "net.safetensors", {"a/b": jnp.ones(2)}, {"a/b": None})
    assert list(tmp_path.iterdir()) == []


def spoil(path, change):
    beside = path.with_suffix(".json")
    content = json.loads(beside.read_text())
    change(content)
    beside.write_text(json.dumps(content))


WRONG = {
    r"only one of them has 'Dense_1/kernel'": lambda c: c["tensors"].update(
        {"Dense_1/kernel": {"shape": [1], "dtype": "float32", "kept": 1, "masked": False}}
    ),
    r"keeps 319 weights of float32; .* has 320": lambda c: c["tensors"]["Dense_0/kernel"].update(
        kept=319
    ),
    r"is not one of shape \(64, 49\)": lambda c: c["tensors"]["Dense_0/kernel"].update(
        shape=[64, 49]
    ),
    r"'Dense_0/bias' has shape \(5, 10\); in '.*' it has \(50,\)": lambda c: c["tensors"][
        "Dense_0/bias"
    ].update(shape=[5, 10]),
    r"no description that save_tensors wrote: '64x50' is no shape": lambda c: c["tensors"][
        "Dense_0/kernel"
    ].update(shape="64x50"),
    r"it is of format 'other'": lambda c: c.update(format="other"),
    r"no description that save_tensors wrote": lambda c: c.pop("tensors"),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_description(tmp_path, message):
    path = jp.save_tensors(tmp_path / "net.safetensors", *network())
    spoil(path, WRONG[message])
    with pytest.raises(ValueError, match=message):
        jp.load_tensors(path)


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_file_that_was_cut(tmp_path, size):
    path = jp.save_tensors(tmp_path / "net.safetensors", *network())
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"net\.safetensors' is damaged, or no safetensors"):
        jp.load_tensors(path)


def test_a_missing_description(tmp_path):
    path = jp.save_tensors(tmp_path / "net.safetensors", *network())
    path.with_suffix(".json").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no '.*net\.json'"):
        jp.load_tensors(path)
