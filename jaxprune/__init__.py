"""jaxprune: optax transforms gradients; jaxprune transforms masks.

    params -> scores -> sparsities (allocation) -> masks (pattern) -> sparsified update -> report

The words of this sentence stand here, in the order in which data flow through them. All other names
stand in rooms: `jp.gates`, `jp.structured`, ... The docstring of a room is its table of contents.
"""

# the types
from jaxprune.base import MaskState as MaskState
from jaxprune.base import MaskTransform as MaskTransform

# what may be pruned
from jaxprune.prunable.layout import Layout as Layout
from jaxprune.prunable.readings import layouts as layouts
from jaxprune.prunable.rules import kernels as kernels
from jaxprune.prunable.rules import matching as matching

# params -> scores
from jaxprune.scores import fisher as fisher
from jaxprune.scores import gradient as gradient
from jaxprune.scores import lamp as lamp
from jaxprune.scores import magnitude as magnitude
from jaxprune.scores import random as random
from jaxprune.scores import saliency as saliency

# scores -> sparsities
from jaxprune.allocation.layerwise import er as er
from jaxprune.allocation.layerwise import erk as erk
from jaxprune.allocation.layerwise import global_threshold as global_threshold
from jaxprune.allocation.by_rule import per_layer as per_layer
from jaxprune.allocation.layerwise import uniform as uniform

# scores, sparsities -> masks
from jaxprune.pattern import block as block
from jaxprune.pattern import channel as channel
from jaxprune.pattern import nm as nm
from jaxprune.one_shot import select as select
from jaxprune.pattern import unstructured as unstructured

# masks over time
from jaxprune.methods.combine import chain as chain
from jaxprune.methods.combine import every as every
from jaxprune.methods.combine import fixed as fixed
from jaxprune.methods.combine import once as once
from jaxprune.methods.prune import prune as prune
from jaxprune.methods.sap import sap as sap

# sparse from the first step
from jaxprune.methods.granet import granet as granet
from jaxprune.methods.itop import itop as itop
from jaxprune.methods.rigl import rigl as rigl
from jaxprune.methods.set import set as set
from jaxprune.methods.static import static as static

# dense weights, sparse network
from jaxprune.methods.bip import bip as bip
from jaxprune.methods.dpf import dpf as dpf
from jaxprune.methods.top_kast import top_kast as top_kast

# masks into optax
from jaxprune.optimizer.dense import keep_dense as keep_dense
from jaxprune.optimizer.sparsify import sparsify as sparsify
from jaxprune.optimizer.sparsify import track_masks as track_masks
from jaxprune.optimizer.dense import train_only as train_only

# masks at work
from jaxprune.masks import all_kept as all_kept
from jaxprune.masks import apply_masks as apply_masks
from jaxprune.masks import get_masks as get_masks
from jaxprune.masks import overlap as overlap
from jaxprune.masks import sparsity as sparsity

# many seeds at once
from jaxprune.analysis.connectivity import barrier as barrier
from jaxprune.analysis.pairs import pairwise as pairwise
from jaxprune.programs.convolution import conv_general_dilated as conv_general_dilated
from jaxprune.soups.average import soup as soup

# whole neurons, and smaller networks
from jaxprune.coupling.analyze import analyze as analyze
from jaxprune.structured.pick import pick as pick
from jaxprune.structured.compact import compact as compact

# costs and results
from jaxprune.programs.bops import Bops as Bops
from jaxprune.programs.bops import count_bops as count_bops
from jaxprune.programs.flops import Flops as Flops
from jaxprune.programs.flops import count_flops as count_flops
from jaxprune.report.report import report as report

# rooms
from jaxprune import allocation as allocation
from jaxprune import dynamic as dynamic
from jaxprune import at_init as at_init
from jaxprune import tickets as tickets
from jaxprune import soups as soups
from jaxprune import distill as distill
from jaxprune import distillation as distillation
from jaxprune import calibration as calibration
from jaxprune import gates as gates
from jaxprune import reparam as reparam
from jaxprune import structured as structured
from jaxprune import analysis as analysis
from jaxprune import fast as fast
from jaxprune import export as export
from jaxprune import plots as plots

__version__ = "0.1.0"
