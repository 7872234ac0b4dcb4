"""Allocations beside those at the root (`jp.uniform`, `jp.erk`, `jp.global_threshold`, ...).

`erk_plus` and `uniform_plus` fix the sparsities of the first and the last layer. `like` uses the
layer-wise sparsities that other scores give. `least_distortion` those of the least distortion by
measured curves, `common_slope` those at which one more weight costs each leaf as much.
"""

from jaxprune.allocation.by_rule import erk_plus as erk_plus
from jaxprune.allocation.by_rule import like as like
from jaxprune.allocation.by_rule import uniform_plus as uniform_plus
from jaxprune.allocation.distortion import least_distortion as least_distortion
from jaxprune.allocation.slopes import common_slope as common_slope
