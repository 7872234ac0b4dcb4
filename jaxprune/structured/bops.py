"""The bit operations of a network with some of its neurons, counted on the smaller program."""

from __future__ import annotations

from jaxprune.coupling.structure import Structure
from jaxprune.programs.bops import Bits, count_bops
from jaxprune.structured.kept import KeptLike, check_kept
from jaxprune.structured.replay import replay


def bops(structure: Structure, kept: KeptLike | None = None, *, bits: Bits) -> float:
    """The bit operations of one call on the example inputs with only the `kept` neurons.

    It is `count_bops` of the compacted network. The network is traced on shapes in each call.

    Args:
      kept: bool (size,) by group, not traced; None keeps all, as does a group that is not named;
        or a `Removal`.
      bits: as for `count_bops`: an int, or (weights, inputs).

    Raises:
      ValueError, TypeError: if `kept` does not fit the structure, or bits are out of range.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> params = {'a': jnp.ones((4, 8)), 'b': jnp.ones((8, 2))}
    >>> structure = jp.analyze(lambda p, x: x @ p['a'] @ p['b'], params, jnp.ones((1, 4)))
    >>> bops(structure, bits=8), bops(structure, {'a': jnp.arange(8) < 2}, bits=8)
    (3952.0, 980.0)

    Reference: Weitz et al., 2025, Neural Architecture Codesign for Fast Physics Applications.
    """
    left = check_kept(structure, {} if kept is None else kept)
    counted = count_bops(replay(structure, left), left.params(), *left.inputs(), bits=bits)
    return sum(counted.leaves.values()) + counted.other
