"""A fixed-point network as an hls4ml project: C++ for an FPGA, compared bit by bit.

hgq2 has the layers that hls4ml reads without a change of any bit. Both packages are an extra.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune.reparam.grid import power_of_two
from recipes.common import folder

FOLDER = "hls"
BIAS_BITS = 16
COMPARED = 1000  # images that the C++ reads
MISSING = "--hls needs packages: pip install 'jaxprune[hls]'"
COMPILER = "--hls compiles the C++ that it writes, and needs g++"


def lacks() -> str:
    """What is not installed, in words; "" if all is there."""
    if not all(importlib.util.find_spec(name) for name in ("hls4ml", "hgq", "keras")):
        return MISSING
    return "" if shutil.which("g++") else COMPILER


def write(path: Path, variables: Mapping[str, Any], bits: int, images: Any) -> int:
    """Writes the project of a `Searched` network; how many images get the same bits in C++.

    The network is one with ReLU and no norm. Its kernels, biases and inputs of layers are on grids
    whose steps are powers of two.

    Args:
      path: a folder; an earlier one is replaced.
      variables: "params" and "batch_stats" of the network.
      bits: of its kernels and inputs of layers.
      images: (n, ...), which the network and the C++ read.
    """
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import hls4ml
    import keras

    rows = np.ascontiguousarray(np.reshape(images, (len(images), -1)), np.float32)
    model = _keras_model(variables, bits, rows.shape[1])
    folder.remove(path)
    project = hls4ml.converters.convert_from_keras_model(
        model,
        output_dir=str(path),
        backend="Vitis",
        io_type="io_parallel",
        hls_config={"Model": {"Precision": "ap_fixed<1,0>", "ReuseFactor": 1}},
    )
    project.compile()
    wanted = np.asarray(keras.ops.convert_to_numpy(model(rows)))
    found = np.reshape(project.predict(rows), wanted.shape)
    return int((wanted == found).all(1).sum())


def _keras_model(variables: Mapping[str, Any], bits: int, inputs: int) -> Any:
    """The network of Keras with the same weights and grids."""
    import keras
    from hgq.config import QuantizerConfig
    from hgq.layers import QDense

    def on_grid(place: str, bits: int, step: float) -> Any:
        fraction = -int(np.log2(step))
        return QuantizerConfig(
            "kif",
            place,
            k0=1,
            i0=bits - 1 - fraction,
            f0=fraction,
            round_mode="RND_CONV",
            overflow_mode="SAT_SYM",
            trainable=False,
            homogeneous_axis=(0, 1) if place == "datalane" else None,
            heterogeneous_axis=None if place == "datalane" else (),
        )

    layers, params, ends = [keras.Input((inputs,))], variables["params"], variables["batch_stats"]
    for name, layer in params.items():
        end = ends[f"largest_{name.removeprefix('Dense_')}"]
        made = QDense(
            layer["kernel"].shape[1],
            activation=None if name == "logits" else "relu",
            name=name.lower(),
            iq_conf=on_grid("datalane", bits, step_of(end, bits)),
            kq_conf=on_grid("weight", bits, step_of(np.abs(layer["kernel"]).max(), bits)),
            bq_conf=on_grid("bias", BIAS_BITS, step_of(np.abs(layer["bias"]).max(), BIAS_BITS)),
        )
        layers.append(made)
    model = keras.Sequential(layers)
    for made, layer in zip(model.layers, params.values(), strict=True):
        made.kernel.assign(np.asarray(layer["kernel"]))
        made.bias.assign(np.asarray(layer["bias"]))
    return model


def step_of(end: Any, bits: int) -> float:
    """The step of the grid of so many bits that ends at `end`: a power of two; 1 for no end."""
    return float(power_of_two(jnp.float32(end) / (2 ** (bits - 1) - 1))) or 1.0
