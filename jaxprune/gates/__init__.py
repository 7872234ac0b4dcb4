"""Gates: masks that are learned. Parameters with a penalty, which become masks.

    logits -> gates (a family) -> apply_masks -> loss + penalty (a budget) -> logits ... -> masks

A gate broadcasts against its parameter: one for each weight, input, channel or layer. Gates are no
mask transforms; their logits are ordinary params of an ordinary optimizer. Gates of neurons, which
`jp.analyze` finds, are `structured.gate_logits`, `structured.apply_gates`,
`structured.relaxed_cost` and `structured.masks`.

Logits: `logits`. Families, each a `Gate`: `hard_concrete`, `binary_concrete`, `gumbel_softmax`,
`bernoulli`, `straight_through`, `continuous_sparsification` (with `rewound_logits`), `vib` (its
`Bottleneck` by `bottleneck`, with `information` and `log_alpha`) and `n_of_m` of blocks (with
`depth_logits` and `choices`). `bi_mask` mixes importance and sizes (`one_hot_loss`). Costs:
`kept_weights`, `kept_flops`. A budget is met by `lagrangian` with its `multipliers`
(`Multipliers`). Penalties: `slimming`, `polarization`, `consensus`, `disagreement`, `ejector` (its
strength by `cubic_ramp`). `box` keeps params in an interval, and `keep_strongest` keeps a layer
from closing. Masks: `threshold`, `keep_at_least`, `within_budget`, then `masks`.
"""

from jaxprune.gates.bernoulli import bernoulli as bernoulli
from jaxprune.gates.bernoulli import straight_through as straight_through
from jaxprune.gates.bi_mask import bi_mask as bi_mask
from jaxprune.gates.bi_mask import one_hot_loss as one_hot_loss
from jaxprune.gates.budgets import kept_flops as kept_flops
from jaxprune.gates.budgets import kept_weights as kept_weights
from jaxprune.gates.concrete import binary_concrete as binary_concrete
from jaxprune.gates.concrete import gumbel_softmax as gumbel_softmax
from jaxprune.gates.consensus import consensus as consensus
from jaxprune.gates.consensus import disagreement as disagreement
from jaxprune.gates.continuous_sparsification import (
    continuous_sparsification as continuous_sparsification,
)
from jaxprune.gates.continuous_sparsification import rewound_logits as rewound_logits
from jaxprune.gates.gate import Gate as Gate
from jaxprune.gates.gate import logits as logits
from jaxprune.gates.hard_concrete import hard_concrete as hard_concrete
from jaxprune.gates.lagrangian import Multipliers as Multipliers
from jaxprune.gates.lagrangian import lagrangian as lagrangian
from jaxprune.gates.lagrangian import multipliers as multipliers
from jaxprune.gates.n_of_m import choices as choices
from jaxprune.gates.n_of_m import depth_logits as depth_logits
from jaxprune.gates.n_of_m import n_of_m as n_of_m
from jaxprune.gates.penalties import box as box
from jaxprune.gates.penalties import cubic_ramp as cubic_ramp
from jaxprune.gates.penalties import ejector as ejector
from jaxprune.gates.penalties import keep_strongest as keep_strongest
from jaxprune.gates.penalties import polarization as polarization
from jaxprune.gates.penalties import slimming as slimming
from jaxprune.gates.to_masks import keep_at_least as keep_at_least
from jaxprune.gates.to_masks import masks as masks
from jaxprune.gates.to_masks import threshold as threshold
from jaxprune.gates.to_masks import within_budget as within_budget
from jaxprune.gates.vib import Bottleneck as Bottleneck
from jaxprune.gates.vib import bottleneck as bottleneck
from jaxprune.gates.vib import information as information
from jaxprune.gates.vib import log_alpha as log_alpha
from jaxprune.gates.vib import vib as vib
