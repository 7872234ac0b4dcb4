"""What is saved is what was told, and quantized networks keep the zeros of their masks."""

import json

import numpy as np
import pytest

from recipes.common import checkpoints, folder
from tests.recipes import running


@pytest.mark.full
def test_saved_networks_are_those_of_the_table(run):
    out = run("quantize").out
    records = [json.loads(line) for line in (out / folder.METRICS).read_text().splitlines()]
    assert [record["method"] for record in records] == ["float32", "ptq", "lsq", "codebook"]
    for record in records[1:]:
        path = out / folder.MODEL / f"{record['method']}-4"
        params, batch_stats, masks = checkpoints.load_model(path)
        told = np.ravel(record["test_accuracy"])
        assert told.tolist() == running.accuracies(out, params, batch_stats)
        for name, layer in params.items():
            kernel, mask = np.asarray(layer["kernel"]), np.asarray(masks[name]["kernel"])
            assert (kernel[~mask] == 0).all()
            assert all(len(np.unique(one)) <= 17 for one in kernel)  # and the zeros of a codebook
            groups = mask[-2:].reshape(2, -1, 4, mask.shape[-1])  # the last networks are 2:4
            assert (groups.sum(2) == 2).all()


@pytest.mark.full
def test_fewer_bits_and_fewer_weights_take_less(run):
    arms = run("quantize").summary["arms"]
    sizes = {name: [of["size_bits"]["mean"] for of in cells] for name, cells in arms.items()}
    assert len(sizes) == 6
    for name, (dense, half, two_of_four) in sizes.items():
        assert max(half, two_of_four) < dense and (
            name == "float32" or 5 * half < sizes["float32"][1]
        )
