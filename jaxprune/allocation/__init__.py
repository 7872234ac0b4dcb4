"""Allocations beside those at the root (`jp.uniform`, `jp.erk`, `jp.global_threshold`, ...).

`erk_plus` and `uniform_plus` treat the first layer and the last in their own way. `like` takes the
layer-wise sparsities of other scores.
"""

from jaxprune.allocation.layerwise import erk_plus as erk_plus
from jaxprune.allocation.layerwise import like as like
from jaxprune.allocation.layerwise import uniform_plus as uniform_plus
