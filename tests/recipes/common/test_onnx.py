"""The reader of ONNX files: files by hand, each rule beside onnxruntime, a published network."""

import importlib.util
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from recipes.common import onnx
from recipes.common.folder import RecipeError
from recipes.common.onnx.files import DTYPES
from recipes.common.onnx.operators import RULES
from recipes.common.onnx.timed import ENGINES, Both, latencies

# --- files by hand --------------------------------------------------------------------------------


def number(n):
    n, out = n & (1 << 64) - 1, b""
    while n > 0x7F:
        out, n = out + bytes([n & 0x7F | 0x80]), n >> 7
    return out + bytes([n])


def field(at, *values):
    out = b""
    for value in values:
        value = value.encode() if isinstance(value, str) else value
        if isinstance(value, float):
            out += number(at << 3 | 5) + struct.pack("<f", value)
        elif isinstance(value, bytes):
            out += number(at << 3 | 2) + number(len(value)) + value
        else:
            out += number(at << 3) + number(value)
    return out


def code(dtype):
    return next(n for n, one in DTYPES.items() if np.dtype(one) == dtype)


def tensor(name, x):
    return field(1, *x.shape) + field(2, code(x.dtype)) + field(8, name) + field(9, x.tobytes())


def attribute(name, value):
    kind, of = {float: (1, 2), int: (2, 3), str: (3, 4), np.ndarray: (4, 5), list: (7, 8)}[
        type(value)
    ]
    values = value if kind == 7 else [tensor("", value) if kind == 4 else value]
    return field(1, name) + field(of, *values) + field(20, kind)


def node(kind, inputs, outputs, name="", **attributes):
    fields = [attribute(*each) for each in attributes.items()]
    return (
        field(1, *inputs) + field(2, *outputs) + field(3, name) + field(4, kind) + field(5, *fields)
    )


def value(name, x):
    dims = b"".join(field(1, field(1, n)) for n in x.shape)
    return field(1, name) + field(2, field(1, field(1, code(x.dtype)) + field(2, dims)))


def written(path, nodes, tensors, inputs, outputs, opset=15):
    graph = field(1, *nodes) + field(2, "net")
    graph += field(5, *(tensor(*each) for each in tensors.items()))
    graph += field(11, *(value(*each) for each in inputs.items()))
    graph += field(12, *(value(*each) for each in outputs.items()))
    path.write_bytes(field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, opset)))
    return path


# --- rules ----------------------------------------------------------------------------------------

X = np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype(np.float32)
POSITIVE, ROW, FOUR = abs(X) + 0.5, X[0, 0, 0], abs(X[0, :, 0, 0]) + 0.1
YES = X > 0
ints = lambda *values: np.array(values, np.int64)
f32 = lambda *shape: np.random.default_rng(1).normal(size=shape).astype(np.float32)

NEAREST = {
    "mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"
}  # fmt: skip

# kind -> (operands, attributes), one or several
CASES = {
    **{kind: [((X, ROW), {})] for kind in ("Add", "Sub", "Mul", "Max", "Min", "Less", "Greater")},
    **{kind: [((POSITIVE,), {})] for kind in ("Sqrt", "Log", "Reciprocal")},
    **{kind: [((X,), {})] for kind in (
        "Exp", "Tanh", "Neg", "Abs", "Relu", "Sigmoid", "Identity", "Shape",
        "GlobalMaxPool", "GlobalAveragePool",
    )},
    **{kind: [((YES, ~YES[:1] | YES[1:]), {})] for kind in ("And", "Or")},
    **{f"Reduce{kind}": [((X,), {"axes": [1, -1], "keepdims": 0}), ((X,), {})]
       for kind in ("Mean", "Max", "Min")},
    "ReduceSum": [((X, ints(1, -1)), {"keepdims": 0}), ((X,), {"noop_with_empty_axes": 1})],
    "Not": [((YES,), {})],
    "Div": [((X, POSITIVE), {}), ((ints(7, -7, 7, -7), ints(2, 2, -2, -2)), {})],
    "Pow": [((POSITIVE, ROW), {})],
    "Equal": [((np.round(X), np.float32(0)), {})],
    "Where": [((YES, X, ROW), {})],
    "HardSigmoid": [((X,), {}), ((X,), {"alpha": 1 / 6, "beta": 0.5})],
    "Softmax": [((X,), {}), ((X,), {"axis": 1})],
    "Clip": [((X, np.float32(-0.5), np.float32(1)), {}), ((X, np.float32(0)), {})],
    "Constant": [((), {"value": X})],
    "Cast": [((X,), {"to": 6}), ((YES,), {"to": 1})],
    "Reshape": [((X, ints(0, -1, 6)), {})],
    "Expand": [((X[:, :1], ints(3, 1, 1, 1, 1)), {}), ((X[:1], ints(2, 1, 1, 1)), {})],
    "Slice": [
        ((X, ints(1, -1), ints(1 << 62, -(1 << 62)), ints(1, 3), ints(2, -2)), {}),
        ((X, ints(0, 1), ints(1, -1)), {}),
    ],
    "Concat": [((X, X[:, :2]), {"axis": 1})],
    "Squeeze": [((X[:1, :, :1], ints(0)), {}), ((X[:1, :, :1],), {})],
    "Unsqueeze": [((X, ints(0, -1)), {})],
    "Transpose": [((X,), {"perm": [0, 2, 3, 1]}), ((X,), {})],
    "Flatten": [((X,), {}), ((X,), {"axis": 3})],
    "Gather": [((X, ints(0, -1, 2)), {"axis": 1})],
    "MatMul": [((X, f32(6, 3)), {}), ((X, X.swapaxes(2, 3)), {})],
    "Gemm": [
        ((f32(2, 3), f32(3, 4), f32(4)), {}),
        ((f32(3, 2), f32(4, 3), f32(1, 4)), {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}),
    ],
    "Conv": [
        ((X, f32(8, 2, 3, 3), f32(8)), {"group": 2, "strides": [2, 1], "pads": [0, 1, 2, 1]}),
        ((X, f32(8, 4, 3, 2)), {"auto_pad": "SAME_UPPER", "kernel_shape": [3, 2]}),
        ((X[:, :, 0], f32(8, 4, 3)), {"dilations": [2]}),
    ],
    "ConvTranspose": [
        ((X, f32(4, 3, 2, 2), f32(3)), {"strides": [2, 2]}),
        ((X, f32(4, 3, 3, 3)), {"strides": [2, 1], "pads": [1, 0, 0, 1], "output_padding": [1, 0]}),
        ((X, f32(4, 3, 2, 2)), {"dilations": [2, 1]}),
    ],
    "MaxPool": [
        ((X,), {"kernel_shape": [2, 2], "strides": [2, 1]}),
        ((X,), {"kernel_shape": [2, 3], "auto_pad": "SAME_UPPER"}),
    ],
    "AveragePool": [
        ((X,), {"kernel_shape": [3, 2], "strides": [3, 2]}),
        ((X,), {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1]}),
        ((X,), {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "count_include_pad": 1}),
    ],
    "Resize": [
        ((X, None, np.array([1, 1, 2, 1.5], np.float32)), NEAREST),
        ((X, None, None, ints(2, 4, 8, 3)), NEAREST),
    ],
    "Erf": [((X,), {})],
    "BatchNormalization": [((X, FOUR, -FOUR, FOUR / 2, FOUR), {"epsilon": 1e-3})],
}  # fmt: skip


def of_one_node(path, kind, operands, attributes):
    """A file with one node; floats are inputs of the network, other operands stand in the file."""
    names = ["" if x is None else f"x{i}" for i, x in enumerate(operands)]
    named = {name: np.asarray(x) for name, x in zip(names, operands, strict=True) if name}
    is_input = lambda name: named[name].dtype == np.float32 and (kind, name) != ("Resize", "x2")
    inputs = {name: x for name, x in named.items() if is_input(name)}
    rest = {name: x for name, x in named.items() if name not in inputs}
    result = np.asarray(RULES[kind](dict(attributes), *operands))
    nodes = [node(kind, names, ["y"], **attributes)]
    return written(path, nodes, rest, inputs, {"y": result}), inputs


def test_every_rule_has_a_case():
    assert set(CASES) == set(RULES)


@pytest.mark.full
@pytest.mark.parametrize("kind", CASES)
def test_a_node_gives_what_onnxruntime_gives(tmp_path, kind):
    onnxruntime = pytest.importorskip("onnxruntime")
    for operands, attributes in CASES[kind]:
        path, inputs = of_one_node(tmp_path / "net.onnx", kind, operands, attributes)
        (wanted,) = onnxruntime.InferenceSession(str(path)).run(None, inputs)
        net = onnx.network(onnx.read(path))
        result = net.fn(net.params, *inputs.values())
        np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-5)
        assert np.shape(result) == wanted.shape


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("Div", [3, -3, -3, 3]),  # towards zero
        ("Slice", X[:, 1::2, :, ::-2]),
        ("Gather", X[:, [0, 3, 2]]),
        ("Reshape", X.reshape(2, 20, 6)),
        ("Expand", np.broadcast_to(X[:, :1], (3, 2, 1, 5, 6))),
    ],
)
def test_shapes_and_integers_by_numpy(kind, wanted):
    at = 1 if kind == "Div" else 0
    operands, attributes = CASES[kind][at]
    np.testing.assert_array_equal(RULES[kind](dict(attributes), *operands), wanted)


# --- networks -------------------------------------------------------------------------------------

W = {"hidden/w": f32(3, 4), "hidden/b": f32(4), "out/w": f32(4, 2)}


def two_layers(path, **options):
    """Of which the batch is read by `Shape`, as exporters write it."""
    tensors = {**W, "first": ints(0), "after": ints(2)}
    nodes = [
        node("Gemm", ["x", "hidden/w", "hidden/b"], ["h"]),
        node("Relu", ["h"], ["r"]),
        node("MatMul", ["r", "out/w"], ["m"]),
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "first"], ["batch"]),
        node("Concat", ["batch", "after"], ["wanted"], axis=0),
        node("Reshape", ["m", "wanted"], ["y"]),
    ]
    x = f32(5, 3)
    return written(path, nodes, tensors, {"x": x}, {"y": x[:, :2]}, **options), x


def test_a_network_is_params_and_a_function_that_can_be_pruned(tmp_path):
    path, x = two_layers(tmp_path / "net.onnx")
    graph = onnx.read(path)
    assert (graph.inputs, graph.outputs, graph.opset) == (("x",), ("y",), 15)
    net = onnx.network(graph)
    assert list(net.params) == list(W) and net.inputs == ("x",)
    wanted = np.maximum(x @ W["hidden/w"] + W["hidden/b"], 0) @ W["out/w"]
    np.testing.assert_allclose(jax.jit(net.fn)(net.params, x), wanted, rtol=1e-5)
    structure = jp.analyze(net.fn, net.params, jnp.asarray(x))
    assert [group.size for group in structure.groups.values()] == [4]
    (name,) = structure.groups
    kept = {name: np.arange(4) != 1}
    small = jp.compact(structure, net.params, kept)
    masks = jp.structured.masks(structure, kept)
    masked = net.fn(jp.apply_masks(net.params, masks), x)
    np.testing.assert_allclose(small.fn(small.params, x), masked, rtol=1e-5)
    assert small.params["hidden/w"].shape == (3, 3)


@pytest.mark.full
@pytest.mark.parametrize("axis", [1, 3])
def test_softmax_of_old_files_is_over_all_axes_from_one_on(tmp_path, axis):
    onnxruntime = pytest.importorskip("onnxruntime")
    nodes = [node("Softmax", ["x"], ["s"], axis=axis), node("Squeeze", ["s"], ["y"], axes=[0])]
    path = written(tmp_path / "net.onnx", nodes, {}, {"x": X[:1]}, {"y": X[0]}, opset=11)
    (wanted,) = onnxruntime.InferenceSession(str(path)).run(None, {"x": X[:1]})
    result = onnx.network(onnx.read(path)).fn({}, X[:1])
    np.testing.assert_allclose(result, wanted, rtol=1e-5)


def test_scales_are_no_weights(tmp_path):
    nodes = [
        node("Constant", [], ["c"], value=np.array([1, 1, 2, 2], np.float32)),
        node("Identity", ["c"], ["scales"]),
        node("Resize", ["x", "", "scales"], ["y"], **NEAREST),
    ]
    path = written(tmp_path / "net.onnx", nodes, {}, {"x": X}, {"y": X.repeat(2, 2).repeat(2, 3)})
    net = onnx.network(onnx.read(path))
    assert net.params == {}
    np.testing.assert_array_equal(jax.jit(net.fn)({}, X), X.repeat(2, 2).repeat(2, 3))


def test_weights_may_be_nodes(tmp_path):
    nodes = [node("Constant", [], ["w"], value=W["out/w"]), node("MatMul", ["x", "w"], ["y"])]
    x = f32(5, 4)
    path = written(tmp_path / "net.onnx", nodes, {}, {"x": x}, {"y": x[:, :2]})
    net = onnx.network(onnx.read(path))
    np.testing.assert_array_equal(net.params["w"], W["out/w"])
    np.testing.assert_allclose(net.fn({"w": 2 * net.params["w"]}, x), 2 * x @ W["out/w"], rtol=1e-5)


def test_a_file_with_smaller_arrays_is_the_compacted_network(tmp_path):
    path, x = two_layers(tmp_path / "net.onnx")
    net = onnx.network(onnx.read(path))
    structure = jp.analyze(net.fn, net.params, jnp.asarray(x))
    kept = {name: np.arange(4) != 1 for name in structure.groups}
    small = jp.compact(structure, net.params, kept)
    again = tmp_path / "small.onnx"
    again.write_bytes(onnx.resized(path, small.params))
    read = onnx.network(onnx.read(again))
    assert read.params["hidden/w"].shape == (3, 3)
    np.testing.assert_array_equal(read.fn(read.params, x), small.fn(small.params, x))
    message = said(lambda: onnx.resized(path, {"hidden": W["hidden/w"]}))
    assert "has no array 'hidden', only after, first, hidden/b" in message
    message = said(lambda: onnx.resized(path, {"first": np.zeros(2)}))
    assert "the array 'first' is int64 of rank 1; got float64 of rank 1" in message


def test_times_are_of_equal_networks(tmp_path):
    pytest.importorskip("onnxruntime")
    path, x = two_layers(tmp_path / "net.onnx")
    net = onnx.network(onnx.read(path))
    own = Both(net.fn, net.params, path)
    told = latencies({"first": own, "second": own}, x, (5,), 2)
    names = ("first", "second", "again")
    assert set(told) == {f"{name}, {engine}" for name in names for engine in ENGINES}
    assert set(told["second, JAX"]) == {"5"}
    assert told["first, onnxruntime"]["5"]["times_as_fast"]["median"] == 1
    other = own._replace(params=jax.tree.map(lambda w: 2 * w, net.params))
    message = said(lambda: latencies({"first": own, "second": other}, x, (5,), 2))
    assert "second: the ONNX file differs from the function by" in message


@pytest.mark.parametrize("last", [3, 4])  # the numbers of the rows; or no one-hot array
def test_the_product_of_a_one_hot_array_is_a_lookup(tmp_path, last):
    """Numbers without a row, 7 and -1, read zeros; a table of which no number is a row is none."""
    ids = np.array([[0, 2], [7, -1]], np.int32)
    rows, table = np.array([[[0, 1, 2, last]]], np.int32), f32(4, 5)
    tensors = {"shape": ints(-1, 2, 1), "wide": ints(2, 2, 4), "rows": rows, "table": table}
    nodes = [
        node("Reshape", ["ids", "shape"], ["r"]),
        node("Expand", ["r", "wide"], ["e"]),
        node("Equal", ["e", "rows"], ["q"]),
        node("Cast", ["q"], ["hot"], to=1),
        node("MatMul", ["hot", "table"], ["y"]),
    ]
    wanted = (ids[..., None] == rows).astype(np.float32) @ table
    path = written(tmp_path / "net.onnx", nodes, tensors, {"ids": ids}, {"y": wanted})
    net = onnx.network(onnx.read(path))
    np.testing.assert_allclose(net.fn(net.params, ids), wanted, rtol=1e-6)
    said = str(jax.make_jaxpr(net.fn)(net.params, ids))
    assert ("gather" in said, "dot_general" in said) == (last == 3, last == 4)


FILES = np.random.default_rng(0).integers(0, 257, (3, 2048)).astype(np.int32)
PUBLISHED = {  # wheel -> file, inputs, weights
    "magika": ("models/standard_v3_3/model.onnx", FILES, 784_214),
    "rapidocr": ("models/ch_ppocr_mobile_v2.0_cls_mobile.onnx", f32(2, 3, 48, 192), 133_628),
}


@pytest.mark.full
@pytest.mark.parametrize("wheel", PUBLISHED)
def test_a_published_network_gives_what_onnxruntime_gives(wheel):
    """Magika tells the type of a file, the other one whether a line of text is upside down."""
    onnxruntime = pytest.importorskip("onnxruntime")
    if (spec := importlib.util.find_spec(wheel)) is None:
        pytest.skip(f"{wheel} is not installed")
    file, x, weights = PUBLISHED[wheel]
    path = Path(spec.origin).parent / file
    net = onnx.network(onnx.read(path))
    assert sum(w.size for w in net.params.values()) == weights
    (wanted,) = onnxruntime.InferenceSession(str(path)).run(None, {net.inputs[0]: x})
    np.testing.assert_allclose(jax.jit(net.fn)(net.params, x), wanted, atol=1e-5)


# --- bad input ------------------------------------------------------------------------------------


def said(f):
    with pytest.raises(RecipeError) as raised:
        f()
    return str(raised.value)


def test_bad_files(tmp_path):
    assert "there is no ONNX file" in said(lambda: onnx.read(tmp_path / "none.onnx"))
    path, _ = two_layers(tmp_path / "net.onnx")
    path.write_bytes(path.read_bytes()[:-40])
    assert "net.onnx is no ONNX file that can be read" in said(lambda: onnx.read(path))
    path.write_bytes(b"\x7fELF, and no network")
    assert "is no ONNX file" in said(lambda: onnx.read(path))
    path, _ = two_layers(tmp_path / "net.onnx", opset=9)
    assert "opset 9; opsets 11 to 25 are read" in said(lambda: onnx.network(onnx.read(path)))


def test_an_operator_without_a_rule_is_named_with_its_node(tmp_path):
    nodes = [node("Relu", ["x"], ["r"]), node("LSTM", ["r"], ["y"], name="encoder/lstm")]
    path = written(tmp_path / "net.onnx", nodes, {}, {"x": X}, {"y": X})
    message = said(lambda: onnx.network(onnx.read(path)))
    assert "the ONNX operator LSTM of node 'encoder/lstm' has no rule" in message
    assert "GlobalMaxPool" in message


@pytest.mark.parametrize(
    ("kind", "operands", "attributes", "fragment"),
    [
        ("Relu", (X,), {"slope": 0.5}, "the rule of Relu has no attribute slope=0.5"),
        ("MatMul", (X, f32(5, 2)), {}, "node 'y' (MatMul) on shapes (2, 4, 5, 6), (5, 2):"),
        ("Conv", (X, f32(8, 4, 3, 3)), {"auto_pad": "SOME"}, "auto_pad=SOME is none of NOTSET"),
        (
            "MaxPool",
            (X,),
            {"kernel_shape": [2, 2], "ceil_mode": 1},
            "ceil_mode=1 and",
        ),
        ("Resize", (X, X[0, 0, 0, :4]), {"mode": "cubic"}, "mode=cubic has no rule, only nearest"),
        ("Cast", (X,), {"to": 8}, "to=8 is a type that is not read here"),
    ],
)
def test_bad_nodes(tmp_path, kind, operands, attributes, fragment):
    named = {f"x{i}": x for i, x in enumerate(operands)}
    nodes = [node(kind, named, ["y"], **attributes)]
    path = written(tmp_path / "net.onnx", nodes, {}, named, {"y": X})
    assert fragment in said(lambda: onnx.network(onnx.read(path)).fn({}, *operands))


def test_sizes_that_depend_on_values(tmp_path):
    nodes = [node("Reshape", ["x", "n"], ["y"], name="cut")]
    path = written(tmp_path / "net.onnx", nodes, {}, {"x": X, "n": ints(-1)}, {"y": X})
    fn = jax.jit(onnx.network(onnx.read(path)).fn)
    message = said(lambda: fn({}, X, np.array([-1], np.int32)))
    assert "the sizes of node 'cut' (Reshape) depend on values of the inputs" in message
    assert "got 1" in said(lambda: onnx.network(onnx.read(path)).fn({}, X))
