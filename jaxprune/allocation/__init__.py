"""Allocations beside those at the root (`jp.uniform`, `jp.erk`, `jp.global_threshold`, ...).

`erk_plus` and `uniform_plus` fix the sparsities of the first and the last layer. `like` uses the
layer-wise sparsities that other scores give. `least_distortion` those of the least distortion by
measured curves, `common_slope` those at which one more weight costs each leaf as much.

How large a sparse layer may be at the FLOPs of a dense one: `wide` (neurons), `parallel`
(branches), `factorized` (neurons between two kernels), `doped` (the rank beside a kernel).
"""

from jaxprune.allocation.by_rule import erk_plus as erk_plus
from jaxprune.allocation.by_rule import like as like
from jaxprune.allocation.by_rule import uniform_plus as uniform_plus
from jaxprune.allocation.distortion import least_distortion as least_distortion
from jaxprune.allocation.iso_flop import doped as doped
from jaxprune.allocation.iso_flop import factorized as factorized
from jaxprune.allocation.iso_flop import parallel as parallel
from jaxprune.allocation.iso_flop import wide as wide
from jaxprune.allocation.slopes import common_slope as common_slope
