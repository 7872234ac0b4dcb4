"""Out as ONNX: in an environment of the extra `onnx`, whose orbax is older than that of recipes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxpr_as_fun

import jaxprune as jp


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x))
        x = nn.avg_pool(x, (2, 2), (2, 2)).reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(16)(x))
        return nn.Dense(4)(x)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")  # of two packages that are not ours
def test_onnxruntime_gives_what_jax_gives():
    """A compacted and a masked network; all else is done first, as jax2onnx replaces functions."""
    jax2onnx, onnxruntime = map(pytest.importorskip, ("jax2onnx", "onnxruntime"))
    x = jax.random.normal(jax.random.key(0), (3, 8, 8, 2))
    fn = Net().apply
    params = Net().init(jax.random.key(1), x)
    structure = jp.analyze(fn, params, x)
    kept = jp.pick(structure, jp.structured.per_group(structure)(params), 0.5)
    masks = jp.select(jp.magnitude(jp.kernels(params)), jp.global_threshold, 0.9)
    small = jp.compact(structure, params, kept)
    masked = jp.structured.Compact(jp.apply_masks(params, masks), fn)
    ready = [
        (jax.make_jaxpr(lambda x, net=net: net.fn(net.params, x))(x), net.fn(net.params, x))
        for net in (small, masked)
    ]
    for jaxpr, wanted in ready:
        program = jaxpr_as_fun(jaxpr)
        shape = jax.ShapeDtypeStruct(x.shape, jnp.float32)
        model = jax2onnx.to_onnx(lambda x, program=program: program(x)[0], [shape])
        session = onnxruntime.InferenceSession(model.SerializeToString())
        (logits,) = session.run(None, {model.graph.input[0].name: np.asarray(x)})
        np.testing.assert_allclose(logits, wanted, atol=1e-5)
        assert np.ptp(logits, axis=0).all()
