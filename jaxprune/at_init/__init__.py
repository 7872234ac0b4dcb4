"""Pruning at initialization: one paper, one file.

Scores from `(loss, params)`: `snip`, `grasp`. Scores from a forward pass: `flow_shares`. Masks in
rounds: `synflow`, `force`, `iter_snip`. The best of many random masks: `random_search`.
`empty_layers` names the layers that keep no weight.
"""

from jaxprune.at_init.empty_layers import empty_layers as empty_layers
from jaxprune.at_init.force import force as force
from jaxprune.at_init.force import iter_snip as iter_snip
from jaxprune.at_init.grasp import grasp as grasp
from jaxprune.at_init.random_search import random_search as random_search
from jaxprune.at_init.snip import snip as snip
from jaxprune.at_init.synflow import flow_shares as flow_shares
from jaxprune.at_init.synflow import synflow as synflow
