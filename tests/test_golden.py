"""Golden mask trajectories: every mask of every step of every transform, pinned in JSON.

They change only on purpose: `python -m tests.test_golden` writes them anew, and the diff is to be
explained in the commit.
"""

import json
import pathlib

import jax
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.transforms import STEPS, TRANSFORMS, loss, tiny_params

FILE = pathlib.Path(__file__).parent / "golden" / "mask_trajectories.json"


def trajectory(transform):
    """For each step, for each kernel, the mask packed to hexadecimal."""
    params = tiny_params()
    tx = jp.sparsify(optax.sgd(0.02), TRANSFORMS[transform](params))

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state, steps = tx.init(params), []
    for _ in range(STEPS):
        params, state = step(params, state)
        masks = jax.tree.leaves(jp.get_masks(state))
        steps.append([np.packbits(np.asarray(mask)).tobytes().hex() for mask in masks])
    return steps


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_masks_are_those_of_the_golden_file(transform):
    assert trajectory(transform) == json.loads(FILE.read_text())[transform]


def test_the_golden_file_knows_no_other_transform():
    assert set(json.loads(FILE.read_text())) == set(TRANSFORMS)


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps({name: trajectory(name) for name in TRANSFORMS}, indent=1) + "\n")
