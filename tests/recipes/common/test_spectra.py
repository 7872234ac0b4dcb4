"""Figures of curvature are PNG of the right size, for one seed too."""

import io

import numpy as np
import pytest
from PIL import Image

from recipes.common.spectra import Curvature, curvature


@pytest.mark.parametrize("seeds", [1, 3])
def test_curvature(seeds):
    grid = np.linspace(-1, 5, 50)
    density = np.stack([np.exp(-((grid - i) ** 2)) for i in range(seeds)])
    own = Curvature(np.arange(1.0, 4.0)[::-1] * np.ones((seeds, 1)), grid, density)
    png = curvature({"dense": own, "sparse": own})
    assert Image.open(io.BytesIO(png)).size == (1400, 580)
