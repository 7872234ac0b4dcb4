"""Lottery tickets: prune what is left, rewind, train again, phase after phase.

`iterative` runs the phases. `next_phase` makes one of them, a `Phase`. `ap` prunes by magnitude and
a little by the score `activating`, which makes more units active. `rate`, `sparsities` and
`schedule` split a sparsity into equal phases, and `sparsity_after` is the way back; `pq_index` is
the measure that `jp.sap` prunes by. Learning rates of retraining: `ft`, `lrr`, `slr`, `clr`, `llr`,
`allr`. Controls: `shuffle` the masks, `reinitialize` the weights.
"""

from jaxprune.methods.sap import pq_index as pq_index
from jaxprune.tickets.ap import activating as activating
from jaxprune.tickets.ap import ap as ap
from jaxprune.tickets.controls import reinitialize as reinitialize
from jaxprune.tickets.controls import shuffle as shuffle
from jaxprune.tickets.phases import Phase as Phase
from jaxprune.tickets.phases import iterative as iterative
from jaxprune.tickets.phases import next_phase as next_phase
from jaxprune.tickets.phases import rate as rate
from jaxprune.tickets.phases import schedule as schedule
from jaxprune.tickets.phases import sparsities as sparsities
from jaxprune.tickets.phases import sparsity_after as sparsity_after
from jaxprune.tickets.retraining import allr as allr
from jaxprune.tickets.retraining import clr as clr
from jaxprune.tickets.retraining import ft as ft
from jaxprune.tickets.retraining import llr as llr
from jaxprune.tickets.retraining import lrr as lrr
from jaxprune.tickets.retraining import slr as slr
