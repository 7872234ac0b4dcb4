"""Studies in phases spread their lanes over the devices of an accelerator: the results of one."""

import math

import numpy as np
import pytest

from recipes import relaxation, soup, stability, structured, tickets
from recipes.common import folder, lanes

SHORT = ["--seeds", "2", "--train-examples", "256", "--batch-size", "32", "--log-every", "4"]
STUDIES = {
    soup: "--steps 8 --retrain 0.5 --sparsities 0.5 --points 3 --width 0.125",
    stability: "--steps 8 --forks 4 --points 3",
    tickets: "--steps 8 --phases 1 --method ltr allr random --rewind 4 --evaluations 2",
    structured: "--steps 8 --rounds 1 --flops 0.5 --width 0.125 --timings 0 --score taylor",
    relaxation: "--steps 14 --width 0.125 --timings 0 --thresholds 0.1 --evaluations 2",
}


def numbers(node):
    """All numbers of what was logged, but for clocks."""
    if isinstance(node, dict):
        return [x for key, own in node.items() if key != "seconds" for x in numbers(own)]
    if isinstance(node, list):
        return [x for own in node for x in numbers(own)]
    return [node] if isinstance(node, int | float) else []


@pytest.mark.full
@pytest.mark.parametrize("recipe", STUDIES, ids=lambda recipe: recipe.__name__)
def test_on_two_devices_are_those_of_one(recipe, tmp_path, monkeypatch):
    found, used = [], set()
    for most in (1, 2):
        monkeypatch.setattr(lanes, "devices_for", lambda count, most=most: math.gcd(count, most))
        gathered = lanes.gathered

        def watched(stack, gathered=gathered):
            used.add(lanes.devices_of(stack))
            return gathered(stack)

        monkeypatch.setattr(lanes, "gathered", watched)
        out = tmp_path / str(most)
        recipe.main([*SHORT, *STUDIES[recipe].split(), "--out", str(out)])
        found.append(numbers(folder.read_lines(out / folder.METRICS)))
    assert used == {1, 2}
    np.testing.assert_allclose(*found, rtol=0.02, atol=0.02)
