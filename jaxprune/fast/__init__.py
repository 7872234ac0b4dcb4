"""Sparse networks that are faster: products with blocks of weights, in training and after it.

A trained network: `fast` (a `Fast`, with a `Choice` for each kernel). Which pattern pays here:
`patterns_worth_it` (a `Table` of `Worth`). Masks of blocks: `in_blocks`, `by_outputs`,
`block_masks`, and the pattern `block(32, 32, balanced=True)`. Training: `block_training` (a
`BlockTraining`, which has a `BlockState`), `slots_of`. One product: `to_blocks` (`Blocks`),
`to_kernel`, and the forms `by_rows`, `by_columns` and `unrolled`.
"""

from jaxprune.fast.block_product import Blocks as Blocks
from jaxprune.fast.block_product import by_columns as by_columns
from jaxprune.fast.block_product import by_rows as by_rows
from jaxprune.fast.block_product import to_blocks as to_blocks
from jaxprune.fast.block_product import to_kernel as to_kernel
from jaxprune.fast.block_product import unrolled as unrolled
from jaxprune.fast.choose import Choice as Choice
from jaxprune.fast.choose import Fast as Fast
from jaxprune.fast.choose import fast as fast
from jaxprune.fast.in_blocks import block_masks as block_masks
from jaxprune.fast.in_blocks import by_outputs as by_outputs
from jaxprune.fast.in_blocks import in_blocks as in_blocks
from jaxprune.fast.state import BlockState as BlockState
from jaxprune.fast.training import BlockTraining as BlockTraining
from jaxprune.fast.training import block_training as block_training
from jaxprune.fast.training import slots_of as slots_of
from jaxprune.fast.worth import Table as Table
from jaxprune.fast.worth import Worth as Worth
from jaxprune.fast.worth import patterns_worth_it as patterns_worth_it
