"""The rules of primitives, one family a file; importing this registers them."""

from jaxprune.coupling.rules import control as control
from jaxprune.coupling.rules import derivatives as derivatives
from jaxprune.coupling.rules import elementwise as elementwise
from jaxprune.coupling.rules import indexing as indexing
from jaxprune.coupling.rules import products as products
from jaxprune.coupling.rules import reductions as reductions
from jaxprune.coupling.rules import segments as segments
from jaxprune.coupling.rules import shapes as shapes
from jaxprune.coupling.rules import sources as sources
