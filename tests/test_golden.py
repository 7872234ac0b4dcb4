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
from tests.transforms import DENSE_WEIGHTS, STEPS, TRANSFORMS, loss, tiny_params

NAMES = (*TRANSFORMS, *DENSE_WEIGHTS)
FILE = pathlib.Path(__file__).parent / "golden" / "mask_trajectories.json"


def trajectory(transform):
    """For each step, for each kernel, the mask packed to hexadecimal."""
    params, inner = tiny_params(), optax.sgd(0.02)
    if transform in DENSE_WEIGHTS:
        tx = DENSE_WEIGHTS[transform](params, inner)
    else:
        tx = jp.sparsify(inner, TRANSFORMS[transform](params))

    @jax.jit
    def step(params, state):
        seen = jp.apply_masks(params, jp.get_masks(state))
        updates, state = tx.update(jax.grad(loss)(seen), state, params)
        return optax.apply_updates(params, updates), state

    state, steps = tx.init(params), []
    for _ in range(STEPS):
        params, state = step(params, state)
        masks = jax.tree.leaves(jp.get_masks(state))
        steps.append([np.packbits(np.asarray(mask)).tobytes().hex() for mask in masks])
    return steps


@pytest.mark.parametrize("transform", NAMES)
def test_masks_are_those_of_the_golden_file(transform):
    assert trajectory(transform) == json.loads(FILE.read_text())[transform]


def test_the_golden_file_knows_no_other_transform():
    assert sorted(json.loads(FILE.read_text())) == sorted(NAMES)


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps({name: trajectory(name) for name in NAMES}, indent=1) + "\n")
