"""Structured pruning: whole neurons go, and the network gets smaller and faster.

    structure = analyze(fn, params, x)       what can go, and what goes with it
    scores = per_group(structure)(params)    what each neuron is worth
    kept = pick(structure, scores, 0.5)      which are kept
    small, small_fn = compact(structure, params, kept)

`kept` is bool (size,) by group, True = kept.
"""

from jaxprune.structured.modules import compact_module as compact_module
from jaxprune.structured.scores import geometric_median as geometric_median
