"""The networks that the recipes train: of images, and of text."""

from recipes.common.models.decoder import Decoder as Decoder
from recipes.common.models.decoder import Size as Size
from recipes.common.models.images import FIRST_LAST as FIRST_LAST
from recipes.common.models.images import GROUPS as GROUPS
from recipes.common.models.images import MLP as MLP
from recipes.common.models.images import MODELS as MODELS
from recipes.common.models.images import NORMS as NORMS
from recipes.common.models.images import Conv as Conv
from recipes.common.models.images import ConvNet as ConvNet
from recipes.common.models.images import LossFn as LossFn
from recipes.common.models.images import ResNet as ResNet
from recipes.common.models.images import classification as classification
from recipes.common.models.images import features as features
from recipes.common.models.images import init as init
from recipes.common.models.images import model as model
from recipes.common.models.vit import ViT as ViT
