"""The parts of dynamic sparse training, beside `jp.set`, `jp.rigl`, `jp.granet` and `jp.itop`.

`drop` and `grow` change masks; `counts` says how many weights each of them changes. `ever_active`
is the fraction of weights that a mask has ever kept. `top_kast_decay` is the weight decay of
`jp.top_kast`. `hyper_gradient` is what the scores of `jp.bip` learn by. `soft_shrinkage` comes
after an optimizer: the smallest weights shrink at every step.
"""

from jaxprune.methods.bip import hyper_gradient as hyper_gradient
from jaxprune.methods.itop import ever_active as ever_active
from jaxprune.methods.soft_shrinkage import soft_shrinkage as soft_shrinkage
from jaxprune.methods.top_kast import top_kast_decay as top_kast_decay
from jaxprune.selection.drop_grow import counts as counts
from jaxprune.selection.drop_grow import drop as drop
from jaxprune.selection.drop_grow import grow as grow
