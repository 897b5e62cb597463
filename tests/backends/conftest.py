"""TensorRTs that are fakes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import fake_tensorrt
import pytest
from fake_gpus import H200, RTX_4090, put_gpu

from qvae_trt import backends

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=list(fake_tensorrt.VARIANTS))
def trt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Each TensorRT in turn, as a fake, on a GPU that it takes."""
    put_gpu(monkeypatch, RTX_4090 if request.param == "rtx" else H200)
    with fake_tensorrt.installed(request.param) as module:
        yield module


@pytest.fixture
def backend(trt: Any) -> backends.Backend:
    return backends.get(trt.__name__)


@pytest.fixture
def trt86(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    put_gpu(monkeypatch, H200)
    with fake_tensorrt.installed("8.6") as module:
        yield module


@pytest.fixture
def trt1016(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    put_gpu(monkeypatch, H200)
    with fake_tensorrt.installed("10.16") as module:
        yield module
