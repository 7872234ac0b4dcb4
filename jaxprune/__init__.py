"""jaxprune: optax transforms gradients; jaxprune transforms masks.

    params -> scores -> sparsities (allocation) -> masks (pattern) -> sparsified update -> report

The public names, in the order in which data flow through them.
"""

# the words
from jaxprune.base import MaskState as MaskState
from jaxprune.base import MaskTransform as MaskTransform

# what may be pruned
from jaxprune.layout import Layout as Layout
from jaxprune.readings import layouts as layouts
from jaxprune.rules import kernels as kernels
from jaxprune.rules import matching as matching

# params -> scores
from jaxprune.scores import fisher as fisher
from jaxprune.scores import gradient as gradient
from jaxprune.scores import lamp as lamp
from jaxprune.scores import magnitude as magnitude
from jaxprune.scores import random as random
from jaxprune.scores import saliency as saliency

# scores -> sparsities
from jaxprune.allocation import borrowed as borrowed
from jaxprune.allocation import er as er
from jaxprune.allocation import erk as erk
from jaxprune.allocation import erk_plus as erk_plus
from jaxprune.allocation import global_threshold as global_threshold
from jaxprune.allocation import per_layer as per_layer
from jaxprune.allocation import uniform as uniform
from jaxprune.allocation import uniform_plus as uniform_plus

# scores, sparsities -> masks
from jaxprune.pattern import block as block
from jaxprune.pattern import channel as channel
from jaxprune.pattern import nm as nm
from jaxprune.pattern import select as select
from jaxprune.pattern import unstructured as unstructured

# pruning at initialisation: a loss, params -> scores, or masks
from jaxprune.at_init.force import force as force
from jaxprune.at_init.force import iter_snip as iter_snip
from jaxprune.at_init.grasp import grasp as grasp
from jaxprune.at_init.snip import snip as snip
from jaxprune.at_init.synflow import flow_shares as flow_shares
from jaxprune.at_init.synflow import synflow as synflow

# masks over time
from jaxprune.methods.combine import chain as chain
from jaxprune.methods.combine import every as every
from jaxprune.methods.combine import fixed as fixed
from jaxprune.methods.combine import once as once
from jaxprune.methods.prune import prune as prune

# sparse from the first step
from jaxprune.drop_grow import drop as drop
from jaxprune.drop_grow import grow as grow
from jaxprune.drop_grow import portions as portions
from jaxprune.methods.granet import granet as granet
from jaxprune.methods.itop import ever_active as ever_active
from jaxprune.methods.itop import itop as itop
from jaxprune.methods.rigl import rigl as rigl
from jaxprune.methods.set import set as set
from jaxprune.methods.static import static as static

# dense weights, sparse network
from jaxprune.methods.dpf import dpf as dpf
from jaxprune.methods.top_kast import top_kast as top_kast
from jaxprune.methods.top_kast import top_kast_decay as top_kast_decay

# masks into optax
from jaxprune.sparsify import freeze as freeze
from jaxprune.sparsify import keep_dense as keep_dense
from jaxprune.sparsify import sparsify as sparsify
from jaxprune.sparsify import track_masks as track_masks

# training again after a prune
from jaxprune.retraining import allr as allr
from jaxprune.retraining import clr as clr
from jaxprune.retraining import ft as ft
from jaxprune.retraining import llr as llr
from jaxprune.retraining import lrr as lrr
from jaxprune.retraining import slr as slr

# phase after phase: prune what is left, rewind, train again
from jaxprune.tickets import Phase as Phase
from jaxprune.tickets import iterative as iterative
from jaxprune.tickets import next_phase as next_phase
from jaxprune.tickets import phase_rate as phase_rate
from jaxprune.tickets import phase_schedule as phase_schedule
from jaxprune.tickets import phase_sparsities as phase_sparsities
from jaxprune.tickets import sparsity_after as sparsity_after
from jaxprune.tickets import weights_at as weights_at
from jaxprune.methods.sap import pq_index as pq_index
from jaxprune.methods.sap import sap as sap

# masks at work
from jaxprune.masks import apply_masks as apply_masks
from jaxprune.masks import get_masks as get_masks
from jaxprune.masks import overlap as overlap
from jaxprune.masks import sparsity as sparsity

# gates: masks that are learned
from jaxprune.gates.gate import Gate as Gate
from jaxprune.gates.gate import gate_logits as gate_logits
from jaxprune.gates.neurons import neuron_logits as neuron_logits
from jaxprune.gates.hard_concrete import hard_concrete as hard_concrete
from jaxprune.gates.concrete import binary_concrete as binary_concrete
from jaxprune.gates.concrete import gumbel_softmax as gumbel_softmax
from jaxprune.gates.bernoulli import bernoulli as bernoulli
from jaxprune.gates.bernoulli import straight_through as straight_through
from jaxprune.gates.continuous_sparsification import (
    continuous_sparsification as continuous_sparsification,
)
from jaxprune.gates.continuous_sparsification import rewound_logits as rewound_logits
from jaxprune.gates.soft_threshold import soft_threshold as soft_threshold
from jaxprune.gates.neurons import neuron_gates as neuron_gates

# gates: what they cost
from jaxprune.flops import count_flops as count_flops
from jaxprune.gates.budgets import excess as excess
from jaxprune.gates.budgets import kept_flops as kept_flops
from jaxprune.gates.budgets import kept_weights as kept_weights
from jaxprune.gates.consensus import consensus as consensus
from jaxprune.gates.consensus import disagreement as disagreement
from jaxprune.gates.keep_between import keep_between as keep_between
from jaxprune.gates.lagrangian import Multipliers as Multipliers
from jaxprune.gates.lagrangian import lagrangian as lagrangian
from jaxprune.gates.lagrangian import multipliers as multipliers
from jaxprune.gates.polarization import polarization as polarization
from jaxprune.gates.slimming import mask_sparsity as mask_sparsity
from jaxprune.gates.slimming import slimming as slimming

# gates -> masks
from jaxprune.gates.to_masks import gate_masks as gate_masks
from jaxprune.gates.to_masks import keep_at_least as keep_at_least
from jaxprune.gates.to_masks import open_gates as open_gates
from jaxprune.gates.to_masks import select_within as select_within
from jaxprune.gates.neurons import neuron_masks as neuron_masks

# many seeds at once
from jaxprune.analysis.batchnorm import recalibrate as recalibrate
from jaxprune.analysis.connectivity import barrier as barrier
from jaxprune.analysis.connectivity import instability as instability
from jaxprune.analysis.connectivity import lerp as lerp
from jaxprune.analysis.connectivity import loss_along as loss_along
from jaxprune.analysis.curves import bezier as bezier
from jaxprune.analysis.curves import fit_curve as fit_curve
from jaxprune.analysis.pairs import connected_components as connected_components
from jaxprune.analysis.pairs import jackknife as jackknife
from jaxprune.analysis.pairs import pairwise as pairwise
from jaxprune.analysis.stability import fork as fork
from jaxprune.analysis.stability import instability_at as instability_at

# convolutions of many seeds at once, fast on CPU
from jaxprune.convolution import conv_general_dilated as conv_general_dilated

# several networks into one
from jaxprune.soups import soup as soup
from jaxprune.greedy import GreedySoup as GreedySoup
from jaxprune.greedy import greedy_soup as greedy_soup
from jaxprune.sparse_soups import SoupPhase as SoupPhase
from jaxprune.sparse_soups import branch as branch
from jaxprune.sparse_soups import soup_phase as soup_phase
from jaxprune.sparse_soups import sparse_model_soups as sparse_model_soups

# the loss landscape
from jaxprune.analysis.hessian import hessian_diagonal as hessian_diagonal
from jaxprune.analysis.hessian import hessian_trace as hessian_trace
from jaxprune.analysis.hessian import hvp as hvp
from jaxprune.analysis.lanczos import Spectrum as Spectrum
from jaxprune.analysis.lanczos import hessian_eigenvalues as hessian_eigenvalues
from jaxprune.analysis.lanczos import hessian_spectrum as hessian_spectrum
from jaxprune.analysis.lanczos import spectral_density as spectral_density
from jaxprune.analysis.landscape import coordinates as coordinates
from jaxprune.analysis.landscape import line as line
from jaxprune.analysis.landscape import plane as plane
from jaxprune.analysis.landscape import plane_through as plane_through
from jaxprune.analysis.landscape import random_direction as random_direction
from jaxprune.analysis.loops import over_batches as over_batches

# alignment
from jaxprune.coupling import Axis as Axis
from jaxprune.coupling import sequential_coupling as sequential_coupling
from jaxprune.analysis.alignment import match_weights as match_weights
from jaxprune.analysis.alignment import permute as permute

# whole neurons, and really smaller networks
from jaxprune.coupling import analyze as analyze
from jaxprune.coupling import register_rule as register_rule
from jaxprune.structured.scores import abs_of_sum as abs_of_sum
from jaxprune.structured.scores import contribution as contribution
from jaxprune.structured.scores import geometric_median as geometric_median
from jaxprune.structured.scores import normalised as normalised
from jaxprune.structured.scores import per_group as per_group
from jaxprune.structured.scores import random_neurons as random_neurons
from jaxprune.structured.scores import square as square
from jaxprune.structured.isomorphic import isomorphic as isomorphic
from jaxprune.structured.pick import pick as pick
from jaxprune.structured.cost import cost as cost
from jaxprune.structured.kept import group_masks as group_masks
from jaxprune.structured.kept import kept_neurons as kept_neurons
from jaxprune.structured.prune import prune_neurons as prune_neurons
from jaxprune.structured.compact import compact as compact
from jaxprune.structured.compact import shrink as shrink
from jaxprune.structured.modules import compact_module as compact_module
from jaxprune.structured.replay import replay as replay
from jaxprune.structured.retrace import retrace as retrace

# groups that keep no neuron, and whole blocks: branches that go
from jaxprune.structured.blocks import block_scores as block_scores
from jaxprune.structured.kept import Removal as Removal
from jaxprune.structured.removal import collapse_emptied as collapse_emptied
from jaxprune.structured.removal import removable_blocks as removable_blocks
from jaxprune.structured.removal import remove_blocks as remove_blocks
from jaxprune.structured.removal import remove_emptied as remove_emptied

# structured pruning by continuous relaxation: gates of groups, folded into the params
from jaxprune.structured.folding import group_logits as group_logits
from jaxprune.gates.relaxation import prevent_collapse as prevent_collapse
from jaxprune.structured.folding import apply_gates as apply_gates
from jaxprune.structured.relaxed import relaxed_cost as relaxed_cost
from jaxprune.gates.relaxation import ejector as ejector
from jaxprune.gates.relaxation import cubic_ramp as cubic_ramp

# controls of a mask
from jaxprune.collapse import collapsed as collapsed
from jaxprune.controls import reinitialise as reinitialise
from jaxprune.controls import shuffle as shuffle

# what it came to
from jaxprune.report import report as report
from jaxprune import plots as plots

# into files and other formats
from jaxprune.export.bits import pack as pack
from jaxprune.export.bits import unpack as unpack
from jaxprune.export.nm import compress_nm as compress_nm
from jaxprune.export.nm import decompress_nm as decompress_nm
from jaxprune.export.sparse import sparse_matmul as sparse_matmul
from jaxprune.export.sparse import to_bcoo as to_bcoo
from jaxprune.export.sparse import to_bcsr as to_bcsr
from jaxprune.export.sparse import to_dense as to_dense
from jaxprune.export.tensors import load_tensors as load_tensors
from jaxprune.export.tensors import save_tensors as save_tensors

__version__ = "0.1.0"
