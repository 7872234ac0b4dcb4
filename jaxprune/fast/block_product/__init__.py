"""`x @ kernel` of a kernel that has blocks of weights: its meaning, and the forms that compute it.

`reference` says the meaning. `by_rows`, `by_columns` and `unrolled` are the forms; `by_share` takes
one of two. All are functions `(x, blocks) -> (n, out)`, equal to rounding, and so are their
gradients. A form enters tests/fast/test_forms.py by one line.
"""

from jaxprune.fast.block_product.blocks import Blocks as Blocks
from jaxprune.fast.block_product.blocks import to_blocks as to_blocks
from jaxprune.fast.block_product.blocks import to_kernel as to_kernel
from jaxprune.fast.block_product.by_share import by_share as by_share
from jaxprune.fast.block_product.gathered import by_columns as by_columns
from jaxprune.fast.block_product.gathered import by_rows as by_rows
from jaxprune.fast.block_product.reference import reference as reference
from jaxprune.fast.block_product.unrolled import unrolled as unrolled
