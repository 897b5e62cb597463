"""The next engine's graph is exported while an engine is built; what fails there costs nothing."""

from __future__ import annotations

import os
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_tensorrt
import pytest
from conftest import Exporter

import qvae_trt.export
from qvae_trt import store
from qvae_trt.backends import devices
from qvae_trt.build import BuildSettings, build, children, plan_static
from qvae_trt.build.children import Graphs, GraphSpec
from qvae_trt.files.reading import sha256_file
from qvae_trt.lowerings import choose_lowering
from qvae_trt.model import load_model
from qvae_trt.profiles import Resolution
from qvae_trt.progress import ignore

SIZES = (Resolution(64, 64), Resolution(64, 96), Resolution(96, 64))
LOWERING = choose_lowering("tensorrt", "8.6.1", "fp16")
GPU = """
from qvae_trt.backends import devices
devices.gpu = lambda: devices.Device("NVIDIA H200", "9.0")
"""


class Here:
    """What was exported in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[Resolution] = []
        self.real = qvae_trt.export.export_onnx
        monkeypatch.setattr(qvae_trt.export, "export_onnx", self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.sizes.append(kwargs["resolution"])
        return self.real(*args, **kwargs)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Here:
    """TensorRT 8.6 in this process and in its children, all of them fakes."""
    folder = fake_tensorrt.write_package(tmp_path / "site", "8.6", after=GPU)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(devices, "gpu", lambda: devices.Device("NVIDIA H200", "9.0"))
    return Here(monkeypatch)


def run(folder: Path, sizes: tuple[Resolution, ...] = SIZES) -> list[str]:
    jobs = plan_static(folder, sizes, ["decoder"], ".trt")
    with fake_tensorrt.installed("8.6"):
        results = build(jobs, BuildSettings(model="bundled:tiny", backend="tensorrt"))
    return [result.status for result in results]


def test_the_next_graph_is_that_of_this_process(here: Here, tmp_path: Path) -> None:
    assert run(tmp_path / "e", SIZES[1:2]) == ["built"]
    assert run(tmp_path / "e") == ["built", "kept", "built"]
    assert here.sizes == [SIZES[1], SIZES[0]]  # the last one was exported elsewhere
    direct = here.real(
        load_model("bundled:tiny"),
        "decoder",
        tmp_path / "direct.onnx",
        precision="fp16",
        resolution=SIZES[2],
        lowering=LOWERING,
    )
    (job,) = plan_static(tmp_path / "e", SIZES[2:], ["decoder"], ".trt")
    assert store.read_sidecar(job.path).key.onnx_sha256 == direct.sha256


@pytest.mark.parametrize("task", [platform.node, os.abort])
def test_without_it_graphs_are_exported_in_time(
    exporter: Exporter, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Any
) -> None:
    monkeypatch.setattr(children, "_export_there", task)
    monkeypatch.setattr(qvae_trt.export, "export_onnx", exporter.export_onnx)
    assert run(tmp_path / "e") == ["built"] * 3
    assert [size for _, size, *_ in exporter.calls] == list(SIZES)


def test_a_graph_of_other_weights_is_not_taken(exporter: Exporter) -> None:
    model = replace(load_model("bundled:tiny"), weights_sha256="0" * 64)
    wanted = GraphSpec("encoder", SIZES[0], LOWERING, "fp16")
    with Graphs(model, ahead=True) as graphs:
        graphs.start(wanted)
        with graphs.graph(wanted, ignore):
            assert len(exporter.calls) == 1, "exported here"


def test_nothing_is_left(
    exporter: Exporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    model = load_model("bundled:tiny")
    first, second = (GraphSpec("decoder", size, LOWERING, "fp16") for size in SIZES[:2])
    with Graphs(model, ahead=True) as graphs:
        graphs.start(first)
        assert len(list(temporary.glob("qvae-build-*"))) == 1
        with graphs.graph(second, ignore):
            assert len(exporter.calls) == 1, "here, as another one was started"
        assert list(temporary.iterdir()) == []
        graphs.start(second)
        with graphs.graph(second, ignore) as graph:
            assert len(exporter.calls) == 1
            assert sha256_file(graph.path) == graph.sha256
        assert list(temporary.iterdir()) == []
        graphs.start(first)

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), graphs.graph(first, stop):
            pass
    assert list(temporary.iterdir()) == []
