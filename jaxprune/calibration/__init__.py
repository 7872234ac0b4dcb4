"""Pruning of trained networks with a few batches, without training.

    fn, params, batches -> prune_in_order(method) -> params, masks

A calibrated method sees one weight matrix and its `Inputs`, and gives the pruned matrix and its
mask: a `Method`. `magnitude` reads the weights only, `wanda` also the norms of the inputs,
`sparsegpt` also their products, by which the weights that stay make up for the others.
`prune_in_order` takes any of them through any function of params: each product is pruned with what
the pruned products before it give. `statistics` prunes nothing: it gathers the `Statistics` of what
each leaf is multiplied with. `distortion_curves` measures what pruning each leaf alone does to the
outputs; `quadratic_curves` estimates it by `output_gradient`. `reconstruct` tunes pruned weights so
that each product gives what it gave before; `obspa` updates the weights that read pruned neurons.
`obspa_scores` and `activation_norms` score neurons. `dare` drops most of what fine-tuning changed;
`dare_rescale` chooses its divisor, and `adamr` (with its `AdamRState`) keeps the changes small.
`repq_fold` gives all channels after a norm one step of quantization (`Folded`).
`block_sparsities` are CFSP's, by how far each block's output has a `turn` from its input.
"""

from jaxprune.calibration.adamr import AdamRState as AdamRState
from jaxprune.calibration.adamr import adamr as adamr
from jaxprune.calibration.cfsp import block_sparsities as block_sparsities
from jaxprune.calibration.cfsp import turn as turn
from jaxprune.calibration.dare import dare as dare
from jaxprune.calibration.dare import dare_rescale as dare_rescale
from jaxprune.calibration.distortion import distortion_curves as distortion_curves
from jaxprune.calibration.in_order import prune_in_order as prune_in_order
from jaxprune.calibration.magnitude import magnitude as magnitude
from jaxprune.calibration.method import Inputs as Inputs
from jaxprune.calibration.method import Method as Method
from jaxprune.calibration.neurons import activation_norms as activation_norms
from jaxprune.calibration.neurons import obspa_scores as obspa_scores
from jaxprune.calibration.obspa import obspa as obspa
from jaxprune.calibration.quadratic import output_gradient as output_gradient
from jaxprune.calibration.quadratic import quadratic_curves as quadratic_curves
from jaxprune.calibration.reconstruct import reconstruct as reconstruct
from jaxprune.calibration.repq_fold import Folded as Folded
from jaxprune.calibration.repq_fold import repq_fold as repq_fold
from jaxprune.calibration.sparsegpt import sparsegpt as sparsegpt
from jaxprune.calibration.statistics import Statistics as Statistics
from jaxprune.calibration.statistics import statistics as statistics
from jaxprune.calibration.wanda import wanda as wanda
