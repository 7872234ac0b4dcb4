"""Soups beside `jp.soup`, the average of a stack: choice of members, and sparse soups in phases.

`greedy` adds members while they help, and returns a `GreedySoup`. `fork` trains the children of one
network under one mask. `phase` prunes, forks and averages once, and returns a `SoupPhase`.
`iterative` repeats phases.
"""

from jaxprune.soups.greedy import GreedySoup as GreedySoup
from jaxprune.soups.greedy import greedy as greedy
from jaxprune.soups.sparse import SoupPhase as SoupPhase
from jaxprune.soups.sparse import fork as fork
from jaxprune.soups.sparse import iterative as iterative
from jaxprune.soups.sparse import phase as phase
