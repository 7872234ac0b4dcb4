"""The coupling of layers in a row, stated by the names of the layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxprune.base import Params
from jaxprune.coupling.stated import Axis
from jaxprune.trees import named_leaves, quoted


def sequential_coupling(params: Params, layers: Sequence[str]) -> dict[str, list[Axis]]:
    """The coupling of layers that follow one another, each reading only the one before it.

    A layer with a kernel (its input axis -2, its outputs -1, as flax has it) begins the group of
    its outputs, named after it; one without, such as a norm, belongs to the group before it. The
    last kernel's outputs are those of the network and in no group, nor are its inputs. Where a
    kernel has more rows than there are neurons, (height, width, channels) was flattened.

    Args:
      params: of the network; only shapes matter.
      layers: paths of the layers in the order of the data: `["Dense_0", "Dense_1", "Dense_2"]`.

    Raises:
      ValueError: if a layer is not there, or its inputs do not fit the outputs before it.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> params = {'a': {'kernel': jnp.ones((4, 3))}, 'b': {'kernel': jnp.ones((3, 2))}}
    >>> for axis in jp.analysis.sequential_coupling(params, ['a', 'b'])['a']: print(axis)
    Axis(path='a/kernel', axis=1, outer=1, inner=1)
    Axis(path='b/kernel', axis=0, outer=1, inner=1)
    """
    if isinstance(layers, str):
        raise TypeError(f"layers is a list of names in order; got the string {layers!r}.")
    leaves = [(path, leaf) for path, leaf in named_leaves(params) if leaf is not None]
    coupling: dict[str, list[Axis]] = {}
    size, group = 0, None
    for layer in layers:
        own = [(path, np.shape(x)) for path, x in leaves if path.rpartition("/")[0] == layer]
        if not own:
            raise ValueError(
                f"sequential_coupling: there is no layer '{layer}'. The leaves are: "
                f"{quoted(leaves)}."
            )
        kernels = [(path, shape) for path, shape in own if len(shape) >= 2]
        if len(kernels) > 1:
            raise ValueError(
                f"sequential_coupling: '{layer}' has {len(kernels)} leaves of rank 2 or more, "
                f"{quoted(kernels)}: write its coupling by hand, as in jaxprune/coupling.py."
            )
        for path, shape in kernels:
            if group is not None:
                outer, rest = divmod(shape[-2], size)
                if rest or not outer:
                    raise ValueError(
                        f"sequential_coupling: '{path}' has shape {shape}, {shape[-2]} inputs, but "
                        f"'{group}' before it has {size} outputs. Correct the order of layers, or "
                        "write the coupling by hand."
                    )
                coupling[group].append(Axis(path, len(shape) - 2, outer=outer))
            size, group = shape[-1], layer
            coupling[group] = [Axis(path, len(shape) - 1)]
        if group is not None:
            coupling[group] += [Axis(path, 0) for path, shape in own if len(shape) == 1]
    if group is not None:
        del coupling[group]
    return coupling
