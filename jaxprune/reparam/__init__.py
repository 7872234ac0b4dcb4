"""Reparameterizations: the optimizer trains one tree, and the network uses another.

    params -> init -> learned (what the optimizer trains) -> apply -> params (what the network uses)

optax transforms gradients, a mask transform transforms masks, and a `Reparameterization` transforms
params. It is a pair of pure functions, `init` and `apply`. `size_of` counts what is learned, in
numbers and in bits: a `Size`. `soft_threshold` learns a threshold for each layer beside the weights
(a `SoftThreshold`), and `weight_gates` a gate for each weight (`WeightGates`). `lora`,
`masked_lora` and `scaled_lora` learn low-rank `Adapters` of kernels that do not move; the latter
two keep the zeros of pruned params. In `doped` the kernels learn too, and are sparse. `sr_ste`,
`decayed_flow` and `stepwise_flow` use N of M of `DenseWeights`, which all learn; the frames of the
last are `halving` or `geometric`. `bdwp` is no pair but another function of the same params: N of M
in the backward pass too. It stands on `backward_weights`, which gives the products of any function
other weights in the backward pass.
`fake_quantization` uses `FloatWeights` on uniform grids, and `lsq` also learns the steps of the
grids (`LearnedSteps`); `quantized_size` counts their bits. `fake_quantize` is for the inputs of
layers. In `learned_levels` all `Levels` learn.
`codebook` has `SharedValues`, with `codes` of all weights and a `codebook_size`; `coded_size` is
the least bits of codes, values and masks by how often each is there. `lr2vq` has codebooks of
`LowRankVectors`, of `lr2vq_size`. In `jlcm` codes learn too (`LearnedCodes`).
`fixed_point` has words of a length for each layer (`FixedPoint`), and `push_down` shortens them.
`adadim` has `ChosenGrids`: of outputs or of inputs, whichever has the smaller error.
In `random_fold` all kernels are made of one `SharedArray`. In `random_subspace` the params move
along fixed random directions, and the coordinates of a `Point` learn.
"""

from jaxprune.reparam.adadim import ChosenGrids as ChosenGrids
from jaxprune.reparam.adadim import adadim as adadim
from jaxprune.reparam.adapters import Adapters as Adapters
from jaxprune.reparam.backward_weights import backward_weights as backward_weights
from jaxprune.reparam.bdwp import bdwp as bdwp
from jaxprune.reparam.codebook import SharedValues as SharedValues
from jaxprune.reparam.codebook import codebook as codebook
from jaxprune.reparam.coded_size import coded_size as coded_size
from jaxprune.reparam.codes import codebook_size as codebook_size
from jaxprune.reparam.codes import codes as codes
from jaxprune.reparam.decayed_flow import decayed_flow as decayed_flow
from jaxprune.reparam.doped import doped as doped
from jaxprune.reparam.fake_quantization import FloatWeights as FloatWeights
from jaxprune.reparam.fake_quantization import fake_quantization as fake_quantization
from jaxprune.reparam.fake_quantization import quantized_size as quantized_size
from jaxprune.reparam.fake_quantize import fake_quantize as fake_quantize
from jaxprune.reparam.fixed_point import FixedPoint as FixedPoint
from jaxprune.reparam.fixed_point import fixed_point as fixed_point
from jaxprune.reparam.fixed_point import push_down as push_down
from jaxprune.reparam.jlcm import LearnedCodes as LearnedCodes
from jaxprune.reparam.jlcm import jlcm as jlcm
from jaxprune.reparam.learned_levels import Levels as Levels
from jaxprune.reparam.learned_levels import learned_levels as learned_levels
from jaxprune.reparam.lora import lora as lora
from jaxprune.reparam.lr2vq import LowRankVectors as LowRankVectors
from jaxprune.reparam.lr2vq import lr2vq as lr2vq
from jaxprune.reparam.lr2vq import lr2vq_size as lr2vq_size
from jaxprune.reparam.lsq import LearnedSteps as LearnedSteps
from jaxprune.reparam.lsq import lsq as lsq
from jaxprune.reparam.masked_lora import masked_lora as masked_lora
from jaxprune.reparam.random_fold import SharedArray as SharedArray
from jaxprune.reparam.random_fold import random_fold as random_fold
from jaxprune.reparam.random_subspace import Point as Point
from jaxprune.reparam.random_subspace import random_subspace as random_subspace
from jaxprune.reparam.reparameterization import Reparameterization as Reparameterization
from jaxprune.reparam.reparameterization import Size as Size
from jaxprune.reparam.reparameterization import size_of as size_of
from jaxprune.reparam.scaled_lora import scaled_lora as scaled_lora
from jaxprune.reparam.soft_threshold import SoftThreshold as SoftThreshold
from jaxprune.reparam.soft_threshold import soft_threshold as soft_threshold
from jaxprune.reparam.sr_ste import DenseWeights as DenseWeights
from jaxprune.reparam.sr_ste import sr_ste as sr_ste
from jaxprune.reparam.stepwise_flow import geometric as geometric
from jaxprune.reparam.stepwise_flow import halving as halving
from jaxprune.reparam.stepwise_flow import stepwise_flow as stepwise_flow
from jaxprune.reparam.weight_gates import WeightGates as WeightGates
from jaxprune.reparam.weight_gates import weight_gates as weight_gates
