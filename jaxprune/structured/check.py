"""Whether params are those that were analysed."""

from __future__ import annotations

import numpy as np

from jaxprune.base import Params
from jaxprune.coupling.structure import Structure
from jaxprune.rules import named_leaves, quoted


def check_params(what: str, structure: Structure, params: Params) -> None:
    """ValueError for a leaf that was not there, or had another shape. Leaves may be missing."""
    shapes = {path: leaf for path, leaf in named_leaves(structure.shapes) if leaf is not None}
    for path, leaf in named_leaves(params):
        if leaf is None:
            continue
        if path not in shapes:
            raise ValueError(
                f"{what}: there was no '{path}' when the function was analysed; there were "
                f"{quoted(shapes.items())}. analyze(fn, params, ...) these params."
            )
        if np.shape(leaf) != shapes[path].shape:
            raise ValueError(
                f"{what}: '{path}' has shape {np.shape(leaf)}, and had {shapes[path].shape} when "
                "it was analysed: analyze(fn, params, ...) these params, and vmap over seeds."
            )
