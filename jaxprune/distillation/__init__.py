"""Knowledge distillation: losses that a dense teacher gives to a pruned student.

Pure functions of logits or of features; the loop of training is yours. The second argument is the
teacher, and it gets no gradient. (`jp.distill` is another subject: distilled data.)

Of logits: `hinton`, and the divergences `forward_kl`, `reverse_kl`, `balanced_kl`. Of features:
`fitnets` with a learned `regressor`, `attention_transfer`, `spatial_attention`, `relational`, and
`normalized`, which gives several terms one size. `features` reads what a layer reads from the
program of a function; a layer is named by its param.
"""

from jaxprune.distillation.attention import attention_transfer as attention_transfer
from jaxprune.distillation.attention import spatial_attention as spatial_attention
from jaxprune.distillation.features import features as features
from jaxprune.distillation.fitnets import fitnets as fitnets
from jaxprune.distillation.fitnets import regressor as regressor
from jaxprune.distillation.logits import balanced_kl as balanced_kl
from jaxprune.distillation.logits import forward_kl as forward_kl
from jaxprune.distillation.logits import hinton as hinton
from jaxprune.distillation.logits import reverse_kl as reverse_kl
from jaxprune.distillation.normalized import normalized as normalized
from jaxprune.distillation.relational import relational as relational
