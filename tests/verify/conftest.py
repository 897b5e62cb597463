"""Engines of the bundled VAE in fp16, their report, a picture."""

from __future__ import annotations

import pytest
from verify_cases import SIZE
from verify_engines import fp16_engines

from qvae_trt.model import BUNDLED_TINY
from qvae_trt.verify import verify
from qvae_trt.verify.inputs import picture


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """A static and a profiles pair in fp16. Shared: not to be written."""
    return fp16_engines(tmp_path_factory)


@pytest.fixture(scope="module")
def report(engines):
    return verify(engines, model=BUNDLED_TINY)


@pytest.fixture(scope="module")
def image():
    return picture("photograph", SIZE)
