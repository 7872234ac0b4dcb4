"""Keys of `jax.random`: the first argument of every function that draws."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import shown

F = TypeVar("F", bound=Callable[..., Any])


def key_first(f: F) -> F:
    """`f`, with an error if its first argument is no key: `rigl(0.9)` lacks the key.

    The doctests of `f` are not run.
    """

    @functools.wraps(f)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for key in args[:1] or [kwargs[name] for name in ("key",) if name in kwargs]:
            check_key(f.__name__, key)
        return f(*args, **kwargs)

    return cast(F, checked)


def check_key(what: str, key: Any) -> None:
    """TypeError unless `key` is one key of jax.random, or several; old ones are uint32."""
    dtype = getattr(key, "dtype", None)
    if dtype is None or not (jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == np.uint32):
        raise TypeError(
            f"{what}(key, ...) needs a key of jax.random, such as jax.random.key(0); got "
            f"{shown(key)}."
        )
