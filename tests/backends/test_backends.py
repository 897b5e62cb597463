"""Which backend, and what every backend is asked."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_tensorrt
import pytest
from fake_gpus import H200, put_gpu

from qvae_trt import backends
from qvae_trt.errors import BackendError, EngineError, UsageError


def test_auto_takes_tensorrt_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    put_gpu(monkeypatch, H200)
    with fake_tensorrt.installed("8.6"):
        assert backends.get("auto").name == "tensorrt"
        put_gpu(monkeypatch, None)
        assert backends.get("auto").name == "onnxruntime"


def test_auto_without_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    put_gpu(monkeypatch, H200)
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # as if it were not installed
    assert backends.get("auto").name == "onnxruntime"


@pytest.mark.parametrize(("capability", "name"), [("12.0", "tensorrt_rtx"), ("9.0", "onnxruntime")])
def test_auto_takes_rtx_where_it_alone_runs(
    capability: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_gpu(monkeypatch, replace(H200, name="a card", compute_capability=capability))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with fake_tensorrt.installed("rtx"):
        assert backends.get("auto").name == name


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_absent_flavour(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendError, match=f"{name} does not import") as caught:
        backends.get(name)
    assert "pip install tensorrt" in str(caught.value.fix)


def test_absent_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match="onnxruntime does not import"):
        backends.get("onnxruntime")


def test_unknown_name() -> None:
    with pytest.raises(UsageError, match="'openvino': expected auto, tensorrt"):
        backends.get("openvino")


@pytest.mark.parametrize(("file", "name"), [("a.onnx", "onnxruntime"), ("a.trt", "tensorrt")])
def test_for_engine_without_sidecar(file: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put_gpu(monkeypatch, H200)
    with fake_tensorrt.installed("8.6"):
        assert backends.for_engine(Path(file)).name == name


def test_for_engine_of_unknown_suffix() -> None:
    with pytest.raises(EngineError, match=r"'\.plan' is no engine's"):
        backends.for_engine(Path("a.plan"))


def test_for_engine_with_sidecar() -> None:
    class Key:
        flavour = "onnxruntime"

    class Sidecar:
        key = Key()

    sidecar: Any = Sidecar()
    assert backends.for_engine(Path("a.trt"), sidecar).name == "onnxruntime"
