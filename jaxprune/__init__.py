"""jaxprune: optax transforms gradients; jaxprune transforms masks.

    params -> scores -> sparsities (allocation) -> masks (pattern) -> sparsified update -> report

The public names, in the order in which data flow through them.
"""

# the words
from jaxprune.base import MaskState as MaskState
from jaxprune.base import MaskTransform as MaskTransform

# what may be pruned
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
from jaxprune.sparsify import sparsify as sparsify
from jaxprune.sparsify import track_masks as track_masks

# masks at work
from jaxprune.masks import apply_masks as apply_masks
from jaxprune.masks import get_masks as get_masks
from jaxprune.masks import overlap as overlap
from jaxprune.masks import sparsity as sparsity

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
from jaxprune.structured.scores import distances as distances
from jaxprune.structured.scores import normalised as normalised
from jaxprune.structured.scores import per_group as per_group
from jaxprune.structured.scores import random_neurons as random_neurons
from jaxprune.structured.scores import square as square
from jaxprune.structured.scores import weight as weight
from jaxprune.structured.pick import pick as pick
from jaxprune.structured.cost import cost as cost
from jaxprune.structured.kept import group_masks as group_masks
from jaxprune.structured.kept import kept_neurons as kept_neurons
from jaxprune.structured.prune import prune_neurons as prune_neurons
from jaxprune.structured.compact import compact as compact
from jaxprune.structured.compact import replay as replay
from jaxprune.structured.compact import shrink as shrink

# what it came to
from jaxprune.report import report as report

__version__ = "0.1.0"
