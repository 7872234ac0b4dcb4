"""Batches with equally many examples of each class."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from recipes.common.errors import RecipeError


def balanced_rows(key: jax.Array, labels: np.ndarray, classes: int, of_each: int) -> jax.Array:
    """Which examples: int32 (classes * of_each,), drawn without replacement, class by class.

    Raises `RecipeError` if a class has fewer examples.
    """
    counts = np.bincount(labels, minlength=classes)
    for label, count in enumerate(counts):
        if count < of_each:
            raise RecipeError(
                f"a balanced batch needs {of_each} examples of each of {classes} classes; class "
                f"{label} has {count or 'none'} of {len(labels):,}. Take fewer of each, or more "
                "training examples"
            )
    # in the order of their classes, and by chance within one
    order = jnp.lexsort((jax.random.uniform(key, (len(labels),)), jnp.asarray(labels)))
    first = np.cumsum(counts) - counts
    return order[(first[:, None] + np.arange(of_each)[None]).ravel()].astype(jnp.int32)
