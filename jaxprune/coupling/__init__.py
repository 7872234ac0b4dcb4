"""Couplings: which axes of which leaves are indexed by the same neurons.

`analyze` finds them on the jaxpr of any function, as a `Structure`. `Structure.coupling()` is the
part that weight matching reads, as plain data (`stated`), which a user can also write by hand.
"""

from jaxprune.coupling.analyze import analyze as analyze
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
