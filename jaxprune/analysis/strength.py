"""How much of a network hangs on each of its inputs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import widened


def input_strength(kernel: jax.Array) -> jax.Array:
    """The strength of the inputs of a layer: s_i = sum over j of |w_ij|; (inputs,), float32.

    Of the first kernel of a sparse autoencoder it ranks the features of the data (QuickSelection):

        tx = sparsify(optax.adam(1e-3), every(469, set(key, 0.97, 0.2)))   # trains the autoencoder
        strength = input_strength(params["encoder"]["kernel"])
        _, features = jax.lax.top_k(strength, 50)

    Args:
      kernel: (inputs, outputs), as the network uses it: zero where it is pruned. For a stack of
        seeds use `vmap`.

    Raises:
      ValueError: if it is no matrix.

    Reference: Atashgahi et al., 2022, Quick and Robust Feature Selection: the Strength of
    Energy-efficient Sparse Training for Autoencoders.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> jp.analysis.input_strength(jnp.array([[0.5, 0., -0.25], [0., 0., 0.125]]))
    Array([0.75 , 0.125], dtype=float32)
    """
    if np.ndim(kernel) != 2:
        raise ValueError(
            "input_strength: a kernel is a matrix (inputs, outputs); got shape "
            f"{np.shape(kernel)}. For a stack of seeds use jax.vmap(input_strength)."
        )
    return jnp.abs(widened(jnp.asarray(kernel))).sum(1)
