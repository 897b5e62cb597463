"""What building promises: the real TensorRT-RTX, which needs no GPU for it, and every fake."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import fake_tensorrt
import pytest
import small_graphs
from fake_gpus import H200, RTX_4090, put_gpu
from small_graphs import FIXED, WIDE, spec

from qvae_trt import backends
from qvae_trt.errors import BuildError, StoreError
from qvae_trt.tensors import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=["real rtx", *fake_tensorrt.VARIANTS])
def backend(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[backends.Backend]:
    if request.param == "real rtx":
        pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
        yield backends.get("tensorrt_rtx")
        return
    put_gpu(monkeypatch, RTX_4090 if request.param == "rtx" else H200)
    with fake_tensorrt.installed(request.param) as module:
        yield backends.get(module.__name__)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return small_graphs.decoder(tmp_path / "d.onnx", cast=True)


@pytest.fixture
def fixed_graph(tmp_path: Path) -> Path:
    return small_graphs.decoder(tmp_path / "f.onnx", side=(16, 24))


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return tmp_path / "e.trt"


def test_outcome_and_file(backend: backends.Backend, graph: Path, engine: Path) -> None:
    before = graph.read_bytes()
    outcome = backend.build(graph, engine, spec(WIDE, FIXED))
    assert outcome.input == TensorSpec("latents", "float16", (1, 4, 1, -1, -1))
    assert outcome.output == TensorSpec("images", "float16", (1, 3, 1, -1, -1))
    assert outcome.flags["profiles"] == "2"
    assert outcome.warnings == ()
    assert engine.stat().st_size > 0
    assert graph.read_bytes() == before
    assert sorted(path.name for path in engine.parent.iterdir()) == ["d.onnx", "e.trt"]


def test_a_graph_of_one_size(backend: backends.Backend, fixed_graph: Path, engine: Path) -> None:
    outcome = backend.build(fixed_graph, engine, spec(FIXED, level=1))
    assert outcome.output.shape == (1, 3, 1, 128, 192)
    assert outcome.flags["level"] == "1"


def test_fp32_multiplies_in_fp32(backend: backends.Backend, tmp_path: Path, engine: Path) -> None:
    graph = small_graphs.decoder(tmp_path / "d.onnx", elem=small_graphs.FP32)
    outcome = backend.build(graph, engine, spec(precision="fp32"))
    assert outcome.input.dtype == "float32"
    assert outcome.flags["tf32"] == "off"


@pytest.mark.parametrize("content", [b"", b"not onnx", b"\x08\x08"])
def test_a_file_that_is_no_graph(
    backend: backends.Backend, tmp_path: Path, engine: Path, content: bytes
) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(BuildError, match=r"x\.onnx"):
        backend.build(tmp_path / "x.onnx", engine, spec())


def test_a_missing_file(backend: backends.Backend, tmp_path: Path, engine: Path) -> None:
    with pytest.raises(BuildError, match=r"none\.onnx"):
        backend.build(tmp_path / "none.onnx", engine, spec())


def test_a_place_that_cannot_be_written(
    backend: backends.Backend, graph: Path, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match="No such file"):
        backend.build(graph, tmp_path / "missing" / "e.trt", spec())


def test_progress_only_grows(backend: backends.Backend, graph: Path, engine: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    backend.build(graph, engine, spec(), progress=lambda *step: seen.append(step))
    done = [step[1] for step in seen]
    assert done == sorted(done)
    assert (seen[0][0], seen[-1]) == ("parse", ("build", 1000, 1000))


@pytest.mark.parametrize("at", ["parse", "build"])
def test_progress_that_stops(backend: backends.Backend, graph: Path, engine: Path, at: str) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backend.build(graph, engine, spec(), progress=stop)
    assert not engine.exists()
    backend.build(graph, engine, spec())  # and nothing is left broken


def test_an_exception_in_the_callback(backend: backends.Backend, graph: Path, engine: Path) -> None:
    def fail(_stage: str, done: int, _total: int) -> None:
        if done > 300:
            raise ValueError("from the callback")

    with pytest.raises(ValueError, match="from the callback"):
        backend.build(graph, engine, spec(), progress=fail)
    assert not engine.exists()
