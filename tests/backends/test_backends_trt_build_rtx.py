"""The real TensorRT-RTX: it builds without a GPU, so parser, builder and messages are real."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import small_graphs
from folding_cases import make_vae
from small_graphs import FIXED, WIDE, spec

from qvae_trt import backends
from qvae_trt.backends import BuildSpec, devices
from qvae_trt.build import Job
from qvae_trt.errors import BackendError, BuildError
from qvae_trt.export import export_onnx
from qvae_trt.lowerings import choose_lowering
from qvae_trt.model import Model
from qvae_trt.profiles import PARTS, Part, Profile, Resolution

rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")


@pytest.fixture
def backend() -> backends.Backend:
    return backends.get("tensorrt_rtx")


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return small_graphs.decoder(tmp_path / "d.onnx", cast=True)


def test_static_with_every_setting(backend: backends.Backend, tmp_path: Path) -> None:
    graph = small_graphs.decoder(tmp_path / "d.onnx", side=(16, 24))
    outcome = backend.build(
        graph,
        tmp_path / "e.trt",
        spec(FIXED, level=1, timing_cache=tmp_path / "t"),
    )
    assert outcome.output.shape == (1, 3, 1, 128, 192)
    assert "timing cache not used" in outcome.warnings[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.onnx", "e.trt"]


def test_cancel(backend: backends.Backend, graph: Path, tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if done >= 300:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backend.build(graph, tmp_path / "e.trt", spec(WIDE), progress=stop)
    assert not (tmp_path / "e.trt").exists()
    backend.build(graph, tmp_path / "e.trt", spec(WIDE))  # and nothing is left broken


def test_what_rtx_does_with_opt_past_max() -> None:
    """Why ranges are checked before: it takes the shape, and refuses by an index only."""
    log = rtx.Logger(rtx.Logger.INTERNAL_ERROR)
    builder = rtx.Builder(log)
    profile = builder.create_optimization_profile()
    profile.set_shape("x", (1, 4), (1, 64), (1, 32))
    assert builder.create_builder_config().add_optimization_profile(profile) == -1


def test_an_error_of_the_parser_is_in_the_message(
    backend: backends.Backend, graph: Path, tmp_path: Path
) -> None:
    import onnx

    model = onnx.load(str(graph))
    model.graph.node[1].op_type = "NoSuchOperation"
    onnx.save(model, str(tmp_path / "bad.onnx"))
    with pytest.raises(BuildError, match="NoSuchOperation") as caught:
        backend.build(tmp_path / "bad.onnx", tmp_path / "e.trt", spec(WIDE))
    assert caught.value.what.startswith("TensorRT does not take bad.onnx (node 1")


def test_an_error_of_the_builder_is_in_the_message(
    backend: backends.Backend, graph: Path, tmp_path: Path
) -> None:
    """A Reshape that no size of the profile fits."""
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(str(graph))
    last = model.graph.node.pop()
    model.graph.initializer.append(
        numpy_helper.from_array(np.array([1, 3, 1, 7, 7], dtype=np.int64), "seven")
    )
    model.graph.node.append(helper.make_node("Reshape", ["u", "seven"], [last.output[0]]))
    onnx.save(model, str(tmp_path / "bad.onnx"))
    with pytest.raises(BuildError, match="TensorRT said: "):
        backend.build(tmp_path / "bad.onnx", tmp_path / "e.trt", spec(WIDE))


@pytest.mark.skipif(devices.gpu() is not None, reason="this machine has a GPU")
def test_running_needs_a_gpu(backend: backends.Backend, graph: Path, tmp_path: Path) -> None:
    backend.build(graph, tmp_path / "e.trt", spec(WIDE))
    verdict = backend.can_run()
    assert not verdict.ok
    assert "running needs an NVIDIA GPU" in verdict.reason
    with pytest.raises(BackendError, match="running needs an NVIDIA GPU"):
        backend.open(tmp_path / "e.trt")


@pytest.mark.parametrize(
    ("form", "ranged"), [("tensorrt_rtx", False), ("tensorrt_rtx", True), ("tensorrt", True)]
)
@pytest.mark.parametrize("part", PARTS)
def test_attention_never_holds_all_scores(
    backend: backends.Backend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: Part,
    form: str,
    ranged: bool,
) -> None:
    """By TensorRT's own account: 57,600 x 57,600 scores in fp16 are 6.6 GB, an eighth 0.8 GB. Two
    such tensors live at once. `tensorrt` is the form for 8.6, whose own plans need a GPU.
    """
    heard: list[str] = []

    def listening(log: Any) -> Any:
        monkeypatch.setattr(type(log), "log", lambda _self, _severity, text: heard.append(text))
        return builder(log)

    builder = rtx.Builder
    monkeypatch.setattr(rtx, "Builder", listening)
    vae = make_vae(num_res_blocks=1)
    largest, model = Resolution(1920, 1920), Model(vae=vae, source="", weights_sha256="0" * 64)
    wide = Profile(Resolution(1088, 1296), Resolution(1088, 1632), largest)
    profile = wide if ranged else Profile.fixed(largest)
    job = Job(tmp_path / "e.trt", part, "profiles", profiles=(profile,))
    export_onnx(
        model,
        part,
        tmp_path / "g.onnx",
        resolution=None if ranged else largest,
        lowering=choose_lowering(form, "8.6.1", "fp16"),
    )
    shapes = job.ranges(model)
    backend.build(
        tmp_path / "g.onnx",
        job.path,
        BuildSpec(ranges=shapes, precision="fp16"),
    )
    found = re.findall(r"Total Activation Memory: (\d+) bytes", "\n".join(heard))
    assert len(found) == 1
    assert int(found[0]) < 2.4e9
