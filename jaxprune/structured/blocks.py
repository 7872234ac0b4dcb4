"""Blocks: modules by name, and what each is worth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp

from jaxprune.base import Scores
from jaxprune.trees import named_leaves


def block_scores(scores: Scores, blocks: Sequence[str]) -> dict[str, jax.Array]:
    """What each block is worth: the sum of the scores of its weights, float32 scalars.

        block_scores(snip(loss, params), blocks)              |w dL/dw|, at initialization
        block_scores(grasp(loss, params), blocks)             signed: higher = keep, as everywhere
        block_scores(magnitude(kernels(params)), blocks)

    The lowest go: `sorted(scores, key=scores.get)[:n]`, for `remove_blocks`.

    Args:
      scores: like the params; None where a leaf has none.
      blocks: names of modules: whole parts of paths, such as "BasicBlock_3".

    Raises:
      ValueError: if a block is not there, or none of its leaves has a score.

    Reference: Jordao et al., 2023, When Layers Play the Lottery, all Tickets Win at Initialization.

    >>> import jax.numpy as jnp
    >>> scores = {'block_0': {'kernel': jnp.ones((2, 2)), 'bias': None}, 'head': jnp.ones(3)}
    >>> float(block_scores(scores, ['block_0'])['block_0'])
    4.0
    """
    of_leaves = {path: s for path, s in named_leaves(scores) if s is not None}
    found = {}
    for block, paths in leaves_of([path for path, _ in named_leaves(scores)], blocks).items():
        own = [of_leaves[path] for path in paths if path in of_leaves]
        if not own:
            raise ValueError(
                f"block_scores: no leaf of block '{block}' has a score: {', '.join(paths)} are "
                "None. Score what says what it is worth, such as magnitude(kernels(params))."
            )
        found[block] = jnp.stack([s.sum(dtype=jnp.float32) for s in own]).sum()
    return found


def leaves_of(paths: Iterable[str], blocks: Sequence[str]) -> dict[str, list[str]]:
    """The paths in each block: those that have its name as whole parts.

    Raises:
      ValueError: if there is no such block.
      TypeError: if `blocks` is no list of names.
    """
    if isinstance(blocks, str) or not all(isinstance(block, str) for block in blocks):
        raise TypeError(
            f'blocks is a list of names of modules, such as ["BasicBlock_3"]; got {blocks!r}.'
        )
    paths = list(paths)
    found: dict[str, list[str]] = {}
    for block in blocks:
        own = [path for path in paths if f"/{block.strip('/')}/" in f"/{path}/"]
        if not own:
            modules = dict.fromkeys(path.rpartition("/")[0] for path in paths)
            some = [repr(module) for module in modules if module][:12]
            raise ValueError(
                f"there is no block {block!r}: no path of a leaf has it as whole parts. The "
                f"modules are {', '.join(some)}{', ...' if len(modules) > 12 else ''}."
            )
        found[block] = own
    return found
