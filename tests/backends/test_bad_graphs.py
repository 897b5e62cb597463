"""ONNX files that were cut short, or lost the file that their weights lie in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import small_graphs

from qvae_trt import backends
from qvae_trt.backends import BuildSpec
from qvae_trt.errors import BackendError, BuildError, EngineError
from qvae_trt.tensors import ShapeRange

WIDE = ShapeRange((1, 4, 1, 4, 4), (1, 4, 1, 16, 16), (1, 4, 1, 32, 32))
SPEC = BuildSpec(ranges=(WIDE,), precision="fp16")
FILES = ["vae.onnx", "vae.onnx.data"]


@pytest.fixture(params=["onnxruntime", "tensorrt_rtx"])
def backend(request: pytest.FixtureRequest) -> backends.Backend:
    """The real ones that build on any machine."""
    try:
        return backends.get(request.param)
    except BackendError as error:
        pytest.skip(error.what)


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A graph whose weights lie in a second file."""
    graph = onnx.load(str(small_graphs.decoder(tmp_path / "whole.onnx")))
    (tmp_path / "graph").mkdir()
    path = tmp_path / "graph" / FILES[0]
    # Shapes stay inside: a graph without them is refused before its weights are read.
    onnx.save(graph, str(path), save_as_external_data=True, location=FILES[1], size_threshold=100)
    return path


@pytest.mark.parametrize("eighths", range(8))
def test_truncated(backend: backends.Backend, tmp_path: Path, eighths: int) -> None:
    data = small_graphs.decoder(tmp_path / "whole.onnx").read_bytes()
    backend.build(tmp_path / "whole.onnx", tmp_path / "engine", SPEC)
    before = (tmp_path / "engine").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(data[: len(data) * eighths // 8])
    with pytest.raises(BuildError, match=r"cut\.onnx"):
        backend.build(tmp_path / "cut.onnx", tmp_path / "engine", SPEC)
    assert (tmp_path / "engine").read_bytes() == before


@pytest.mark.parametrize("left", [None, 0, 10, 215])
def test_external_data_missing_or_short(
    backend: backends.Backend, external: Path, tmp_path: Path, left: int | None
) -> None:
    backend.build(external, tmp_path / "engine", SPEC)  # as it should be
    before = (tmp_path / "engine").read_bytes()
    data = external.with_name(FILES[1])
    assert data.stat().st_size == 216
    if left is None:
        data.unlink()
    else:
        data.write_bytes(data.read_bytes()[:left])
    with pytest.raises(BuildError, match=r"vae\.onnx") as caught:
        backend.build(external, tmp_path / "engine", SPEC)
    named = FILES[1] if left is None else "initializer"
    assert named in caught.value.what
    assert (tmp_path / "engine").read_bytes() == before


def test_an_engine_holds_the_weights_of_such_a_graph(external: Path, tmp_path: Path) -> None:
    backend: Any = backends.get("onnxruntime")
    (tmp_path / "elsewhere").mkdir()
    engine = tmp_path / "elsewhere" / "engine.onnx"
    backend.build(external, engine, SPEC)
    external.with_name(FILES[1]).unlink()
    x = np.random.default_rng(0).standard_normal((1, 4, 1, 8, 8)).astype(np.float16)
    session = backend.open(engine)
    session.select(x.shape, 0)
    y = np.zeros(session.output_shape(), np.float16)
    pointers = {"input_ptr": x.ctypes.data, "output_ptr": y.ctypes.data}
    session.execute(**pointers, scratch_ptr=0, scratch_bytes=0, stream=0)
    assert np.abs(y - small_graphs.run_decoder(x)).max() < 2e-3


def test_an_engine_that_lost_its_external_data(external: Path, tmp_path: Path) -> None:
    """Only ONNX Runtime's engines can have any, and only those that somebody else made."""
    backend: Any = backends.get("onnxruntime")
    external.with_name(FILES[1]).unlink()
    with pytest.raises(EngineError, match="does not load it"):
        backend.open(external)
