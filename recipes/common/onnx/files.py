"""Reads an ONNX file: a message of protocol buffers, of which few fields matter here.

A message is a row of (field number and wire type, value): type 0 is an integer of 7 bits a byte,
1 and 5 are 8 and 4 bytes, 2 is a length and so many bytes: text, an array, or a message again. The
field numbers are those of onnx.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from recipes.common.folder import RecipeError

# TensorProto.DataType, also of Cast
DTYPES: dict[int, Any] = {
    1: np.float32, 2: np.uint8, 3: np.int8, 4: np.uint16, 5: np.int16, 6: np.int32, 7: np.int64,
    9: np.bool_, 10: np.float16, 11: np.float64, 12: np.uint32, 13: np.uint64,
    16: ml_dtypes.bfloat16,
}  # fmt: skip


class Node(NamedTuple):
    """An operator of a graph.

    Attributes:
      name: of the file; without one, the name of the first result.
      kind: the operator, such as `Conv`.
      domain: "" for the operators of ONNX itself.
      inputs: names of values; "" where an optional one is left out.
      outputs: names of values.
      attributes: numbers, text, lists of these, and numpy arrays.
    """

    name: str
    kind: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


class Graph(NamedTuple):
    """The network of a file.

    Attributes:
      nodes: in the order in which they can run.
      tensors: the arrays of the file, numpy, by name.
      inputs, outputs: names of values; the arrays of the file are no inputs.
      opset: the version of the operators.
    """

    nodes: tuple[Node, ...]
    tensors: dict[str, np.ndarray]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int


def read(path: Path | str) -> Graph:
    """The graph of an ONNX file.

    Raises:
      RecipeError: if the file is not there or no ONNX file, or keeps its arrays in other files.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"there is no ONNX file {path}")
    try:
        model = read_message(path.read_bytes())
        graph = read_message(_one(model, 7))
        opsets = [read_message(each) for each in model.get(8, [])]
        versions = {_text(_one(o, 1, b"")): _one(o, 2, 1) for o in opsets}
        nodes = tuple(map(_node, graph.get(1, [])))
        tensors = dict(map(read_tensor, graph.get(5, [])))
    except (IndexError, KeyError, struct.error, UnicodeDecodeError, ValueError) as error:
        raise RecipeError(f"{path} is no ONNX file that can be read: {error!r}") from error
    names = lambda field: tuple(
        _text(_one(read_message(value), 1)) for value in graph.get(field, [])
    )
    inputs = tuple(name for name in names(11) if name not in tensors)
    return Graph(nodes, tensors, inputs, names(12), versions.get("", versions.get("ai.onnx", 1)))


def read_message(message: bytes) -> dict[int, list[Any]]:
    """The values of each field of a message, in their order."""
    found: dict[int, list[Any]] = {}
    at, end = 0, len(message)
    while at < end:
        key, at = _integer(message, at)
        field, kind = key >> 3, key & 7
        value: Any
        if kind == 0:
            value, at = _integer(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, at = message[at : at + size], at + size
        elif kind == 2:
            size, at = _integer(message, at)
            value, at = message[at : at + size], at + size
        else:
            raise ValueError(f"a field of wire type {kind}")
        if at > end:
            raise ValueError("it ends in the middle of a field")
        found.setdefault(field, []).append(value)
    return found


def _integer(message: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, signed in 64 bits, and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value - (1 << 64) if value >> 63 else value, at


def _integers(values: list[Any]) -> Iterator[int]:
    """A field of several numbers, one by one or packed."""
    for value in values:
        if isinstance(value, int):
            yield value
            continue
        at = 0
        while at < len(value):
            n, at = _integer(value, at)
            yield n


def _floats(values: list[bytes]) -> list[float]:
    """A field of several floats, one by one or packed."""
    return np.frombuffer(b"".join(values), "<f4").tolist()


def _one(fields: dict[int, list[Any]], field: int, *otherwise: Any) -> Any:
    if field not in fields and otherwise:
        return otherwise[0]
    return fields[field][-1]


def _text(value: bytes) -> str:
    return value.decode()


def _node(message: bytes) -> Node:
    fields = read_message(message)
    texts = lambda field: tuple(map(_text, fields.get(field, [])))
    attributes = dict(map(_attribute, fields.get(5, [])))
    name = _text(_one(fields, 3, b"")) or texts(2)[0]
    kind, domain = _text(_one(fields, 4)), _text(_one(fields, 7, b""))
    return Node(name, kind, "" if domain == "ai.onnx" else domain, texts(1), texts(2), attributes)


def _attribute(message: bytes) -> tuple[str, Any]:
    fields = read_message(message)
    kind = _one(fields, 20, 0)
    values = {
        1: lambda: struct.unpack("<f", _one(fields, 2))[0],
        2: lambda: _one(fields, 3, 0),
        3: lambda: _text(_one(fields, 4, b"")),
        4: lambda: read_tensor(_one(fields, 5))[1],
        6: lambda: _floats(fields.get(7, [])),
        7: lambda: [*_integers(fields.get(8, []))],
        8: lambda: [*map(_text, fields.get(9, []))],
    }
    return _text(_one(fields, 1)), values[kind]() if kind in values else None  # None: a graph


def read_tensor(message: bytes) -> tuple[str, np.ndarray]:
    fields = read_message(message)
    name, kind = _text(_one(fields, 8, b"")), _one(fields, 2)
    shape = [*_integers(fields.get(1, []))]
    if _one(fields, 14, 0):
        raise RecipeError(f"the array '{name}' stands in another file; store it in the ONNX file")
    if kind not in DTYPES:
        raise RecipeError(f"the array '{name}' has the ONNX type {kind}, which is not read here")
    dtype = np.dtype(DTYPES[kind])
    if 9 in fields:
        flat = np.frombuffer(_one(fields, 9), dtype.newbyteorder("<") if kind != 16 else dtype)
    elif 4 in fields:
        flat = np.array(_floats(fields[4]))
    elif 10 in fields:
        flat = np.frombuffer(b"".join(fields[10]), "<f8")
    else:
        numbers = [*_integers(fields.get(5, []) + fields.get(7, []) + fields.get(11, []))]
        half = dtype.itemsize == 2 and kind in (10, 16)  # stored by their bits
        flat = np.array(numbers, np.uint16).view(dtype) if half else np.array(numbers)
    return name, flat.astype(dtype).reshape(shape)
