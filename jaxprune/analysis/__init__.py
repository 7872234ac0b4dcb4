"""The loss around and between networks: functions of `params -> scalar`, of no model.

Paths: `lerp`, `loss_along`, `instability`, `bezier`, `fit_curve`. Copies trained from one state:
`fork`, `instability_at`. Pairs of seeds (with `jp.pairwise` and `jp.barrier`):
`connected_components`, `jackknife`. Statistics of batch norm, measured anew: `recalibrate`. Planes:
`random_direction`, `line`, `plane`, `plane_through`, `coordinates`. Curvature: `hvp`,
`hessian_trace`, `hessian_diagonal`, `hessian_eigenvalues`, `hessian_spectrum` (a `Spectrum`),
`spectral_density`. The mean of a loss over batches: `over_batches`. Alignment: `match_weights` and
`permute`, by the coupling that `jp.analyze(fn, params, x).coupling()` finds. Curves over sparsity:
`drop_point` (a `DropPoint`). Units that give zero: `dead_relus` (two rates, a `DeadRelus`).
Inputs that matter: `input_strength`.
"""

from jaxprune.analysis.alignment import match_weights as match_weights
from jaxprune.analysis.alignment import permute as permute
from jaxprune.analysis.batchnorm import recalibrate as recalibrate
from jaxprune.analysis.connectivity import instability as instability
from jaxprune.analysis.connectivity import lerp as lerp
from jaxprune.analysis.connectivity import loss_along as loss_along
from jaxprune.analysis.curves import bezier as bezier
from jaxprune.analysis.curves import fit_curve as fit_curve
from jaxprune.analysis.dead_relus import DeadRelus as DeadRelus
from jaxprune.analysis.dead_relus import dead_relus as dead_relus
from jaxprune.analysis.directions import random_direction as random_direction
from jaxprune.analysis.drops import DropPoint as DropPoint
from jaxprune.analysis.drops import drop_point as drop_point
from jaxprune.analysis.hessian import hessian_diagonal as hessian_diagonal
from jaxprune.analysis.hessian import hessian_trace as hessian_trace
from jaxprune.analysis.hessian import hvp as hvp
from jaxprune.analysis.lanczos import Spectrum as Spectrum
from jaxprune.analysis.lanczos import hessian_eigenvalues as hessian_eigenvalues
from jaxprune.analysis.lanczos import hessian_spectrum as hessian_spectrum
from jaxprune.analysis.lanczos import spectral_density as spectral_density
from jaxprune.analysis.pairs import connected_components as connected_components
from jaxprune.analysis.pairs import jackknife as jackknife
from jaxprune.analysis.planes import coordinates as coordinates
from jaxprune.analysis.planes import line as line
from jaxprune.analysis.planes import plane as plane
from jaxprune.analysis.planes import plane_through as plane_through
from jaxprune.analysis.stability import fork as fork
from jaxprune.analysis.stability import instability_at as instability_at
from jaxprune.analysis.strength import input_strength as input_strength
from jaxprune.losses import over_batches as over_batches
