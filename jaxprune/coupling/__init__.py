"""Couplings: which axes of which leaves are indexed by the same neurons.

Stated by hand or by the names of layers (`stated`, `sequential`), or found on the jaxpr of any
function (`analyze`). Weight matching and structured pruning read them.
"""

from jaxprune.coupling.analyze import analyze as analyze
from jaxprune.coupling.rules.registry import Rule as Rule
from jaxprune.coupling.rules.registry import register_rule as register_rule
from jaxprune.coupling.sequential import sequential_coupling as sequential_coupling
from jaxprune.coupling.stated import Axis as Axis
from jaxprune.coupling.stated import Coupling as Coupling
from jaxprune.coupling.stated import Group as Group
from jaxprune.coupling.stated import check_coupling as check_coupling
from jaxprune.coupling.stated import front as front
from jaxprune.coupling.stated import take as take
from jaxprune.coupling.stated import take_leaf as take_leaf
from jaxprune.coupling.structure import Member as Member
from jaxprune.coupling.structure import Neurons as Neurons
from jaxprune.coupling.structure import Structure as Structure
