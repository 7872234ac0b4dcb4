"""Published networks as ONNX files: `network(read(path))` is params and a function on them."""

from recipes.common.onnx.files import Graph as Graph
from recipes.common.onnx.files import Node as Node
from recipes.common.onnx.files import read as read
from recipes.common.onnx.network import Network as Network
from recipes.common.onnx.network import network as network
from recipes.common.onnx.resized import resized as resized
