"""A network of ONNX as params and a function of JAX, node by node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from recipes.common.folder import RecipeError
from recipes.common.onnx.files import Graph, Node
from recipes.common.onnx.lookups import LOOKUP, lookup, with_lookups
from recipes.common.onnx.operators import FLAT, RULES
from recipes.common.onnx.windows import Unknown

OPSETS = 11, 25


class Network(NamedTuple):
    """A network to analyze, prune and train.

    Attributes:
      params: float32 arrays of more than one entry, by their names in the file: those that the file
        stores, and the values of its nodes `Constant`.
      fn: `(params, *inputs) -> output`, a tuple if there are several.
      inputs: the names of the inputs.
    """

    params: dict[str, jax.Array]
    fn: Callable[..., Any]
    inputs: tuple[str, ...]


def network(graph: Graph) -> Network:
    """The network of a graph.

    Sizes that the graph computes (`Shape`, `Gather`, `Concat`, `Reshape`) are numbers when the
    function is traced: the function can be jitted, differentiated and analyzed.

    Raises:
      RecipeError: if an operator has no rule, or the opset is not in [11, 25]; the message names
        the operator and the node. When called: if a node has an attribute that its rule does not
        know, or sizes depend on values of the inputs.
    """
    low, high = OPSETS
    if not low <= graph.opset <= high:
        raise RecipeError(
            f"the ONNX file has opset {graph.opset}; opsets {low} to {high} are read. Convert the "
            f"file: onnx.version_converter.convert_version(model, {low})."
        )
    unknown = [node for node in graph.nodes if node.domain or node.kind not in RULES]
    if unknown:
        kinds = dict.fromkeys(f"{node.domain}.{node.kind}".strip(".") for node in unknown)
        raise RecipeError(
            f"the ONNX operator {unknown[0].kind} of node '{unknown[0].name}' has no rule; without "
            f"a rule are {', '.join(kinds)}. Rules stand in recipes/common/onnx/operators.py: "
            f"{', '.join(sorted(RULES))}."
        )
    tensors, nodes = dict(graph.tensors), []
    for node in graph.nodes:
        if node.kind == "Constant" and "value" in node.attributes:
            tensors[node.outputs[0]] = node.attributes["value"]
        elif node.kind == "Softmax" and graph.opset < 13:
            nodes.append(node._replace(attributes={"axis": 1, **node.attributes, FLAT: 1}))
        else:
            nodes.append(node)
    sizes = _sizes(nodes)
    nodes = with_lookups(nodes, tensors, graph.outputs)
    is_param = lambda name, x: x.dtype == np.float32 and x.size > 1 and name not in sizes
    params = {name: jnp.asarray(x) for name, x in tensors.items() if is_param(name, x)}
    constants = {name: x for name, x in tensors.items() if name not in params}

    def fn(params: dict[str, jax.Array], *inputs: Any) -> Any:
        if len(inputs) != len(graph.inputs):
            raise RecipeError(
                f"the network has the inputs {', '.join(graph.inputs)}; got {len(inputs)}"
            )
        values = {"": None, **constants, **params, **dict(zip(graph.inputs, inputs, strict=True))}
        for node in nodes:
            values.update(zip(node.outputs, _results(node, values), strict=False))
        outputs = tuple(values[name] for name in graph.outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    return Network(params, fn, graph.inputs)


def _sizes(nodes: list[Node]) -> set[str]:
    """Names of floats that are sizes and no weights: the scales of `Resize`."""
    found = {name for node in nodes if node.kind == "Resize" for name in node.inputs[1:]}
    for node in reversed(nodes):
        if node.kind == "Identity" and node.outputs[0] in found:
            found.add(node.inputs[0])
    return found


def _results(node: Node, values: dict[str, Any]) -> list[Any]:
    attributes = dict(node.attributes)
    operands = [values[name] for name in node.inputs]
    try:
        rule = lookup if node.kind == LOOKUP else RULES[node.kind]
        result = rule(attributes, *operands)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise RecipeError(
            f"the sizes of node '{node.name}' ({node.kind}) depend on values of the inputs"
        ) from error
    except (TypeError, ValueError, Unknown) as error:
        shapes = ", ".join(str(np.shape(x)) for x in operands if x is not None)
        raise RecipeError(
            f"node '{node.name}' ({node.kind}) on shapes {shapes}: {error}"
        ) from error
    if attributes:  # a rule takes what it knows
        name, value = next(iter(attributes.items()))
        raise RecipeError(
            f"node '{node.name}': the rule of {node.kind} has no attribute {name}={value}"
        )
    return [result]
