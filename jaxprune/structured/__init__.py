"""Structured pruning: whole neurons go, and the network gets smaller and faster.

    structure = jp.analyze(fn, params, x)       what can go, and what goes with it
    scores = per_group(structure)(params)       what each neuron is worth
    kept = jp.pick(structure, scores, 0.5)      which are kept
    small, small_fn = jp.compact(structure, params, kept)

`kept` is bool (size,) by group, True = kept. The three verbs stand at the root, the rest is here,
with the types that they return: a `Structure`, and a `Compact` network.

Scores: `per_group` of `square`, `taylor`, or any score of weights, with `abs_of_sum` for signed
ones; `geometric_median`, `random`; `normalized` by group. `isomorphic` is an allocation. `cost` is
the weights and FLOPs that are left, `counter` counts them for many `kept`, `bops` counts bit
operations. Masks: `masks` of the
neurons that are kept, `kept` is its inverse, and `prune` is a mask transform. Smaller: `shrink`
(optimizer states too), `compact_module` (an nnx module), `replay` (a training function), `retrace`
(the code itself). Branches that go, as a `Removal`: `remove_emptied`, `collapse_emptied`,
`remove_blocks`, `removable_blocks`, `block_scores`; `knapsack` chooses blocks by their
`output_losses` or `moment_changes`. `performance_aware` prunes group by group while a loss stays
within its `allowances`. Gates of groups: `gate_logits`, `apply_gates`
(`per_example` of a batch), `relaxed_cost`; `cut` removes what they close, and `required_groups`
keep a neuron; `apply_block_gates` has a gate for a block. `register_rule` teaches `jp.analyze` a
primitive.
"""

from jaxprune.coupling.structure import Structure as Structure
from jaxprune.programs.primitives import register_rule as register_rule
from jaxprune.structured.block_gates import apply_block_gates as apply_block_gates
from jaxprune.structured.bops import bops as bops
from jaxprune.structured.compact import Compact as Compact
from jaxprune.structured.compact import shrink as shrink
from jaxprune.structured.cost import cost as cost
from jaxprune.structured.cost import counter as counter
from jaxprune.structured.cut import cut as cut
from jaxprune.structured.cut import required_groups as required_groups
from jaxprune.structured.gates import apply_gates as apply_gates
from jaxprune.structured.gates import gate_logits as gate_logits
from jaxprune.structured.gates import per_example as per_example
from jaxprune.structured.isomorphic import isomorphic as isomorphic
from jaxprune.structured.kept import Removal as Removal
from jaxprune.structured.kept import kept as kept
from jaxprune.structured.kept import masks as masks
from jaxprune.structured.knapsack import knapsack as knapsack
from jaxprune.structured.knapsack import output_losses as output_losses
from jaxprune.structured.modules import compact_module as compact_module
from jaxprune.structured.moment_changes import moment_changes as moment_changes
from jaxprune.structured.performance_aware import allowances as allowances
from jaxprune.structured.performance_aware import performance_aware as performance_aware
from jaxprune.structured.prune import prune as prune
from jaxprune.structured.relaxed import relaxed_cost as relaxed_cost
from jaxprune.structured.removal import block_scores as block_scores
from jaxprune.structured.removal import collapse_emptied as collapse_emptied
from jaxprune.structured.removal import removable_blocks as removable_blocks
from jaxprune.structured.removal import remove_blocks as remove_blocks
from jaxprune.structured.removal import remove_emptied as remove_emptied
from jaxprune.structured.replay import replay as replay
from jaxprune.structured.retrace import retrace as retrace
from jaxprune.structured.scores import abs_of_sum as abs_of_sum
from jaxprune.structured.scores import geometric_median as geometric_median
from jaxprune.structured.scores import normalized as normalized
from jaxprune.structured.scores import per_group as per_group
from jaxprune.structured.scores import random as random
from jaxprune.structured.scores import square as square
from jaxprune.structured.scores import taylor as taylor
