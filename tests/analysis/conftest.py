"""What the tests of analysis share."""

import pytest

import jaxprune as jp


@pytest.fixture
def masks(params):
    """Masks that keep 24 of the 48 weights of the kernels."""
    return jp.select(jp.magnitude(jp.kernels(params)), jp.global_threshold, 0.5)
