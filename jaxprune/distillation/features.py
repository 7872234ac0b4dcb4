"""What layers read, by the program of a function: a layer is named by its param."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax

from jaxprune.base import Params, shown
from jaxprune.programs.interpret import CALLS, bind, programs, walk
from jaxprune.programs.primitives import sides
from jaxprune.trees import present_leaves, quoted, shape_only

# equations whose result has the entries of the operand in other places
_PLACES = ("reshape", "transpose", "squeeze", "expand_dims", "convert_element_type", "copy")


class _Weight(NamedTuple):
    """A leaf on its way to its product."""

    name: str
    array: jax.Array


def features(fn: Callable[..., Any], layers: Iterable[str]) -> Callable[..., Any]:
    """`fn`, which also returns what the products of some leaves read: the features before a layer.

        watched = features(fn, ["Dense_1/kernel"])
        outputs, seen = watched(params, *inputs)        # outputs = fn(params, *inputs)

    `seen["Dense_1/kernel"]` is the other operand of the product, in its own shape: (n, width) of a
    dense layer, (n, height, width, channels) of a convolution of Flax. So it is the hidden features
    after norm and relu. A compacted network has the same names, with fewer channels. The program
    is read, so no model is edited; derivatives are those of `fn`.

    Args:
      fn: `(params, *inputs) -> Any`, of arrays.
      layers: the names of leaves, paths as in `"params/Conv_1/kernel"`.

    Returns:
      `(params, *inputs) -> (fn(params, *inputs), {layer: features})`, for `jit`, `vmap` and `grad`.

    Raises:
      TypeError: if `layers` is a string.
      ValueError: (when called) if the params have no leaf of this name, or if not exactly one
        product of the program reads it: products within `scan`, `cond` or `while_loop` count not.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> fn = lambda params, x: jnp.tanh(x @ params['a']) @ params['b']
    >>> params = {'a': jnp.zeros((2, 3)), 'b': jnp.ones((3, 1))}
    >>> _, seen = jp.distillation.features(fn, ['b'])(params, jnp.ones((4, 2)))
    >>> seen['b'].shape
    (4, 3)
    """
    if isinstance(layers, str):
        raise TypeError(f"features: layers is a list of names; got {shown(layers)}.")
    wanted = list(layers)

    def watched(params: Params, *inputs: Any) -> tuple[Any, dict[str, jax.Array]]:
        leaves = present_leaves(params)
        if unknown := [(name, None) for name in wanted if name not in dict(leaves)]:
            raise ValueError(
                f"features: the params have no leaf {quoted(unknown)}; they have {quoted(leaves)}."
            )
        shapes = jax.tree.map(shape_only, (params, *inputs))
        program, result = jax.make_jaxpr(fn, return_shape=True)(*shapes)
        seen: dict[str, list[jax.Array]] = {name: [] for name in wanted}
        operands = [_Weight(name, x) if name in seen else x for name, x in leaves]
        results = _run(program, [*operands, *jax.tree.leaves(inputs)], seen)
        for name, each in seen.items():
            if len(each) != 1:
                raise ValueError(
                    f"features: {len(each)} products of the program read '{name}', and one is "
                    "wanted: products within scan, cond and while_loop are not seen. Choose a "
                    "leaf that one dense layer or one convolution reads."
                )
        outputs = jax.tree.unflatten(jax.tree.structure(result), map(_array, results))
        return outputs, {name: each[0] for name, each in seen.items()}

    return watched


def _run(program: Any, operands: list[Any], seen: dict[str, list[jax.Array]]) -> list[Any]:
    """The results of a program; operands and results may be a `_Weight`."""

    def equation(eqn: Any, values: list[Any]) -> list[Any]:
        places = [i for i, value in enumerate(values) if isinstance(value, _Weight)]
        kind = eqn.primitive.name
        is_product = sides(eqn) is not None or kind == "fast_conv"
        if kind in CALLS and places and not is_product:
            return _run(programs(eqn)[0], values, seen)
        arrays = [_array(value) for value in values]
        results = bind(eqn, arrays)
        if len(places) == 1 and is_product:
            seen[values[places[0]].name].append(arrays[1 - places[0]])
        if kind in _PLACES and places == [0]:
            return [_Weight(values[0].name, results[0])]
        return results

    return walk(program, operands, equation, lambda x, atom: x)


def _array(value: Any) -> Any:
    return value.array if isinstance(value, _Weight) else value
