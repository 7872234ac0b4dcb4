"""A network as a file without its code: StableHLO, with its weights, for batches of any size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from recipes.common import folder

FILE = "network.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")


def save(path: Path, module: Any, variables: Any, image: Sequence[int]) -> None:
    """Writes `images (batch, *image) float32 -> logits`.

    Any process with JAX reads it: `jax.export.deserialize(path.read_bytes()).call(images)`.
    """
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *image), jnp.float32)
    fn = jax.jit(lambda images: module.apply(variables, images))
    folder.write(path, bytes(export.export(fn, platforms=PLATFORMS)(images).serialize()))
