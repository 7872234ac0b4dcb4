"""What each layer of a flax module gives, and how far it is from what it gave before pruning."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def outputs(module: nn.Module, params: Any, inputs: jax.Array) -> dict[str, jax.Array]:
    """What each layer with a kernel gives, by its path."""
    layers = lambda module, method: isinstance(module, (nn.Dense, nn.DenseGeneral))
    _, seen = module.apply({"params": params}, inputs, capture_intermediates=layers)
    leaves = jax.tree_util.tree_leaves_with_path(seen["intermediates"])
    return {"/".join(str(part.key) for part in path[:-2]): x for path, x in leaves}


def errors(module: nn.Module, params: Any, dense: Any, inputs: Any) -> dict[str, np.ndarray]:
    """By layer the error of its output, relative to the output of the dense network, (networks,).

    The squared error over the squared output. It has the errors of all layers before it. Both are
    stacks of networks.
    """

    @jax.jit
    @jax.vmap
    def relative(params: Any, dense: Any) -> dict[str, jax.Array]:
        a, b = (outputs(module, p, jnp.asarray(inputs)) for p in (params, dense))
        return {name: jnp.sum((a[name] - b[name]) ** 2) / jnp.sum(b[name] ** 2) for name in b}

    return {name: np.asarray(x) for name, x in relative(params, dense).items()}
