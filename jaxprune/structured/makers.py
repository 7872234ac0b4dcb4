"""Which leaves make the neurons of a group: those whose product has them as outputs."""

from __future__ import annotations

from jaxprune.coupling.structure import Member, Structure
from jaxprune.coupling.uses import Uses


def makers(structure: Structure) -> dict[str, tuple[Member, ...]]:
    """By group the members that make its neurons, in the order of the data.

    An axis of a leaf makes neurons if a product with the leaf, or a look-up in it, has the axis in
    its result; an axis that a product sums over reads them, and norms and biases do neither.
    """
    uses, axes = Uses(structure.program, list(structure.axes)), structure.axes
    return {
        name: tuple(
            Member(path, i)
            for path, i in group.members
            if path in axes and uses.makes(path, axes[path][i], structure.atoms[name])
        )
        for name, group in structure.groups.items()
    }
