"""Magika, a network that tells the type of a file from its bytes, as its wheel brings it.

Reference: Fratantonio et al., 2024, Magika: AI-Powered Content-Type Detection.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from recipes.common.files import Window
from recipes.common.folder import RecipeError

MODEL = "models/standard_v3_3"
GROUPS = {"bytes": "jax2tf_get_logits_", "convolution": "*/Conv_0"}  # of channels
# The sizes that the file writes down: each is so many times the neurons that are kept of the table.
TABLE, SIZES = "jax2tf_get_logits_/Const:0", {"const_fold_opt__154": 4}
LAYERS = "jax2tf_get_logits_/pjit_get_logits_/MagikaV2/"
FIRST = frozenset(  # the table, its bias, and the norm after it
    (
        TABLE,
        *(
            f"{LAYERS}{name}:0"
            for name in ("Dense_0/Reshape", "LayerNorm_0/Reshape_2", "LayerNorm_0/Reshape_3")
        ),
    )
)


class Magika(NamedTuple):
    """What the wheel tells.

    Attributes:
      path: the ONNX file; its function is `(params, int32 (n, 2048)) -> probabilities (n, 214)`.
      window: what it reads of a file.
      labels: the names of the types.
      extensions: of each type, such as ".py"; many types have none.
    """

    path: Path
    window: Window
    labels: tuple[str, ...]
    extensions: tuple[frozenset[str], ...]


def load() -> Magika:
    """Reads the files of the wheel.

    Raises:
      RecipeError: if the wheel is not installed, or has other files.
    """
    if (spec := find_spec("magika")) is None or spec.origin is None:
        raise RecipeError("Magika needs a package: pip install 'jaxprune[published]'")
    folder = Path(spec.origin).parent
    path, config = folder / MODEL / "model.onnx", folder / MODEL / "config.min.json"
    known = folder / "config/content_types_kb.min.json"
    for file in (path, config, known):
        if not file.is_file():
            raise RecipeError(f"this magika has no {file}: pip install 'magika>=1.0,<1.1'")
    says, types = (json.loads(file.read_text()) for file in (config, known))
    window = Window(
        first=says["beg_size"],
        last=says["end_size"],
        block=says["block_size"],
        padding=says["padding_token"],
        least=says["min_file_size_for_dl"],
    )
    labels = tuple(says["target_labels_space"])
    dotted = lambda label: frozenset(f".{one}" for one in types[label]["extensions"])
    return Magika(path, window, labels, tuple(map(dotted, labels)))


def by_extension(magika: Magika, answers: Sequence[int], extensions: Sequence[str]) -> float:
    """The fraction of files whose type has their extension, of the files with a known one."""
    known = frozenset[str]().union(*magika.extensions)
    pairs = zip(answers, extensions, strict=True)
    hits = [one in magika.extensions[answer] for answer, one in pairs if one in known]
    return sum(hits) / len(hits) if hits else 0.0
