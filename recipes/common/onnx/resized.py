"""An ONNX file with other arrays: the way back of a compacted network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recipes.common.folder import RecipeError
from recipes.common.onnx.files import DTYPES, read_message, read_tensor

MODEL_GRAPH, ARRAYS, SHAPES = 7, 5, 13  # numbers of onnx.proto


def resized(path: Path | str, tensors: Mapping[str, Any]) -> bytes:
    """The content of the file, with `tensors` in place of its arrays of these names.

    The nodes stay as they are: a size that the file writes down is an array to replace too. The
    shapes that the file tells of values between nodes are left out.

    Args:
      path: an ONNX file that `read` reads.
      tensors: name -> array of the dtype of the file's array.

    Raises:
      RecipeError: for a name that is no array of the file, and for another dtype or rank.
    """
    model = read_message(Path(path).read_bytes())
    graph = read_message(model[MODEL_GRAPH][0])
    arrays = dict(map(read_tensor, graph.get(ARRAYS, [])))
    for name, x in tensors.items():
        if name not in arrays:
            raise RecipeError(f"{path} has no array '{name}', only {', '.join(sorted(arrays))}")
        was, now = arrays[name], np.asarray(x)
        if (was.dtype, was.ndim) != (now.dtype, now.ndim):
            raise RecipeError(
                f"the array '{name}' is {was.dtype} of rank {was.ndim}; got {now.dtype} of rank "
                f"{now.ndim}"
            )
        arrays[name] = now
    graph[ARRAYS] = [_written(name, x) for name, x in arrays.items()]
    graph.pop(SHAPES, None)
    return _message(model | {MODEL_GRAPH: [_message(graph)]})


def _written(name: str, x: np.ndarray) -> bytes:
    kind = next(n for n, dtype in DTYPES.items() if x.dtype == dtype)
    values: dict[int, list[Any]] = {1: list(x.shape), 2: [kind], 8: [name.encode()]}
    return _message(values | {9: [np.ascontiguousarray(x).tobytes()]})


def _message(values: Mapping[int, list[Any]]) -> bytes:
    """A message of integers, and of bytes: text, arrays and messages."""
    out = b""
    for field, several in values.items():
        for value in several:
            if isinstance(value, bytes):
                out += _number(field << 3 | 2) + _number(len(value)) + value
            else:
                out += _number(field << 3) + _number(value)
    return out


def _number(n: int) -> bytes:
    n, out = n & (1 << 64) - 1, b""
    while n > 0x7F:
        out, n = out + bytes([n & 0x7F | 0x80]), n >> 7
    return out + bytes([n])
