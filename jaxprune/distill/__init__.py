"""Distilled data: a few synthetic images that train a network like the real ones.

The images are ordinary params: any optax optimizer trains them, and `jax.vmap` distills several
sets at once. Both sides of a loss have an axis of classes in front, `(classes, n, ...)`.

Losses, one paper each: `distribution_matching`, `gradient_matching` (by `cosine`, `squared` or
`absolute` distance), `trajectory_matching`. Augmentation that is the same on both sides:
`siamese`, which draws one of `color`, `crop`, `cutout`, `flip`, `rotate`, `scale`. Several images
in the numbers of one: `multi_formation`. Real images to compare with: `herding`.
"""

from jaxprune.distill.augmentation import color as color
from jaxprune.distill.augmentation import crop as crop
from jaxprune.distill.augmentation import cutout as cutout
from jaxprune.distill.augmentation import flip as flip
from jaxprune.distill.augmentation import rotate as rotate
from jaxprune.distill.augmentation import scale as scale
from jaxprune.distill.augmentation import siamese as siamese
from jaxprune.distill.distribution_matching import distribution_matching as distribution_matching
from jaxprune.distill.gradient_matching import absolute as absolute
from jaxprune.distill.gradient_matching import cosine as cosine
from jaxprune.distill.gradient_matching import gradient_matching as gradient_matching
from jaxprune.distill.gradient_matching import squared as squared
from jaxprune.distill.herding import herding as herding
from jaxprune.distill.multi_formation import multi_formation as multi_formation
from jaxprune.distill.trajectory_matching import trajectory_matching as trajectory_matching
