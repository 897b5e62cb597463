"""How each TensorRT is asked to build; `..._contract.py` has what they all promise."""

from __future__ import annotations

import gc
import json
import logging
import os
import weakref
from pathlib import Path
from typing import Any

import fake_tensorrt
import numpy as np
import onnx
import pytest
import small_graphs
from fake_gpus import put_gpu
from small_graphs import FIXED, SMALL, WIDE, spec

from qvae_trt import backends
from qvae_trt.backends import BuildSpec, Device, trt_build
from qvae_trt.errors import (
    BackendError,
    BuildError,
    DeviceMemoryError,
)
from qvae_trt.export import export_onnx
from qvae_trt.files.reading import MOST_BYTES
from qvae_trt.lowerings import Lowering, choose_lowering
from qvae_trt.model import load_model
from qvae_trt.profiles import Resolution
from qvae_trt.tensors import ShapeRange


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return small_graphs.decoder(tmp_path / "d.onnx", cast=True)


@pytest.fixture
def fixed_graph(tmp_path: Path) -> Path:
    return small_graphs.decoder(tmp_path / "f.onnx", side=(16, 24))


def test_network_flag_is_chosen_by_name(
    trt: Any, backend: backends.Backend, graph: Path, tmp_path: Path
) -> None:
    backend.build(graph, tmp_path / "e.trt", spec())
    (call,) = trt.fake.of("Builder.create_network")
    flag = trt.NetworkDefinitionCreationFlag
    typed = getattr(flag, "STRONGLY_TYPED", None)
    assert call.args == (1 << int(flag.EXPLICIT_BATCH if typed is None else typed),)


def test_precision_flags_only_where_typing_is_weak(
    trt: Any, backend: backends.Backend, graph: Path, tmp_path: Path
) -> None:
    outcome = backend.build(graph, tmp_path / "e.trt", spec())
    flags = {call.args[0] for call in trt.fake.of("IBuilderConfig.set_flag")}
    if trt.fake.variant == "8.6":
        assert flags == {"FP16", "OBEY_PRECISION_CONSTRAINTS"}
        assert outcome.flags["typing"] == "constrained"
    else:
        assert not flags & {"FP16", "BF16", "OBEY_PRECISION_CONSTRAINTS"}
        assert outcome.flags["typing"] == "strong"
        assert "ILayer.set_output_type" not in trt.fake.names()


def types_set(engine: Path) -> dict[str, str]:
    """Tensor -> the type that its layer was fixed at, in a fake TensorRT."""
    types: dict[str, str] = json.loads(engine.read_bytes())["types"]
    return types


def test_86_fixes_every_float_layer_at_the_graphs_type(
    trt86: Any, graph: Path, tmp_path: Path
) -> None:
    """Whatever type its parser reports; the two casts are not touched."""
    outcome = backends.get("tensorrt").build(graph, tmp_path / "e.trt", spec())
    halves = dict.fromkeys(["x", "a", "m", "u", "images"], "HALF")
    assert types_set(tmp_path / "e.trt") == {**halves, "s32": "FLOAT"}
    assert outcome.flags["constrained_layers"] == "6"
    assert outcome.flags["fp32_layers"] == "1"


@pytest.mark.parametrize(
    ("lowering", "is_all_half"),
    [
        (choose_lowering("tensorrt", "8.6.1", "fp16"), True),
        (Lowering(norm="fp32", attention="softmax", attention_chunks=2), False),
    ],
    ids=["default", "norm and mean in fp32"],
)
def test_86_keeps_what_the_networks_graph_has_in_fp32(
    trt86: Any, tmp_path: Path, lowering: Lowering, is_all_half: bool
) -> None:
    model, engine = load_model("bundled:tiny"), tmp_path / "e.trt"
    file = export_onnx(
        model, "decoder", tmp_path / "d.onnx", resolution=Resolution(32, 64), lowering=lowering
    )
    sizes = ShapeRange.fixed(file.input.shape)
    outcome = backends.get("tensorrt").build(file.path, engine, spec(sizes))
    graph = onnx.shape_inference.infer_shapes(onnx.load(str(file.path))).graph
    kinds = {onnx.TensorProto.FLOAT16: "HALF", onnx.TensorProto.FLOAT: "FLOAT"}
    values = (*graph.value_info, *graph.output)
    types = {value.name: kinds.get(value.type.tensor_type.elem_type) for value in values}
    makers = [node for node in graph.node if node.op_type not in ("Cast", "Constant")]
    expected = {name: types[name] for node in makers for name in node.output if types[name]}
    found = types_set(engine)
    assert {name: kind for name, kind in found.items() if name in expected} == expected
    assert ("FLOAT" not in found.values()) == is_all_half
    assert outcome.flags["fp32_layers"] == str(list(found.values()).count("FLOAT"))


def test_86_keeps_small_constants_in_fp32(trt86: Any, tmp_path: Path) -> None:
    """1e-24 is added to a sum of squares: in fp16 it would be 0, and 0/0 would follow."""
    path = small_graphs.decoder(tmp_path / "d.onnx", cast=True)
    model = onnx.load(str(path))
    tiny = onnx.numpy_helper.from_array(np.array(1e-24, dtype=np.float32), "tiny")
    model.graph.initializer.append(tiny)
    sigmoid = next(i for i, node in enumerate(model.graph.node) if node.op_type == "Sigmoid")
    model.graph.node.insert(sigmoid, onnx.helper.make_node("Add", ["a32", "tiny"], ["b32"]))
    model.graph.node[sigmoid + 1].input[0] = "b32"
    onnx.save(model, str(path))
    backends.get("tensorrt").build(path, tmp_path / "e.trt", spec())
    unnamed = {n: kind for n, kind in types_set(tmp_path / "e.trt").items() if n.startswith("(")}
    assert list(unnamed.values()) == ["FLOAT"]


def test_86_leaves_integer_and_shape_layers_alone(trt86: Any, tmp_path: Path) -> None:
    graph = small_graphs.with_shape_arithmetic(tmp_path / "s.onnx")
    outcome = backends.get("tensorrt").build(graph, tmp_path / "e.trt", spec())
    kinds = {call.args[1] for call in trt86.fake.of("ILayer.set_output_type")}
    assert kinds == {"HALF"}
    assert 0 < int(outcome.flags["constrained_layers"]) < len(small_graphs.node_types(graph))


def test_86_fp32_sets_no_precision(trt86: Any, tmp_path: Path) -> None:
    graph = small_graphs.decoder(tmp_path / "d.onnx", elem=small_graphs.FP32)
    backends.get("tensorrt").build(graph, tmp_path / "e.trt", spec(precision="fp32"))
    assert trt86.fake.of("IBuilderConfig.set_flag") == []
    assert "ILayer.precision" not in trt86.fake.names()


def test_bf16_is_refused_by_86_with_a_way_out(trt86: Any, graph: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"TensorRT 8\.6\.1 has no bf16") as caught:
        backends.get("tensorrt").build(graph, tmp_path / "e.trt", spec(precision="bf16"))
    assert caught.value.fix == "--precision fp16"
    assert trt86.fake.calls == []


def test_bf16_elsewhere(trt1016: Any) -> None:
    assert backends.get("tensorrt").supports("bf16").ok


def test_bf16_is_refused_on_a_card_without_it(
    trt1016: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_gpu(monkeypatch, Device("Tesla T4", "7.5", 16 << 30, "580.95.05"))
    verdict = backends.get("tensorrt").supports("bf16")
    assert not verdict.ok
    assert "Tesla T4 has no bf16 (compute capability 7.5" in verdict.reason
    assert backends.get("tensorrt").supports("fp16").ok


# --- preview features ---------------------------------------------------------------------------


@pytest.mark.parametrize("ranges", [(WIDE,), (FIXED, SMALL)], ids=["range", "one of two"])
def test_preview_features_of_ranges(
    trt: Any,
    backend: backends.Backend,
    graph: Path,
    tmp_path: Path,
    ranges: tuple[ShapeRange, ...],
) -> None:
    outcome = backend.build(graph, tmp_path / "e.trt", spec(*ranges))
    found = {call.args for call in trt.fake.of("IBuilderConfig.set_preview_feature")}
    if trt.fake.variant == "8.6":
        assert found == {("FASTER_DYNAMIC_SHAPES_0805", False)}
        assert outcome.flags["faster_dynamic_shapes_0805"] == "off"
    elif trt.fake.variant == "10.0":
        assert found == set()
    else:
        assert found == {("RUNTIME_ACTIVATION_RESIZE_10_10", True)}
        assert outcome.flags["runtime_activation_resize_10_10"] == "on"


def test_no_preview_features_of_one_shape(
    trt: Any, backend: backends.Backend, fixed_graph: Path, tmp_path: Path
) -> None:
    backend.build(fixed_graph, tmp_path / "e.trt", spec(FIXED))
    assert trt.fake.of("IBuilderConfig.set_preview_feature") == []


# --- tactic sources -----------------------------------------------------------------------------


def test_86_takes_only_tactics_whose_libraries_are_here(
    trt86: Any, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trt_build, "has_library", lambda name: "CUBLAS" not in name)
    outcome = backends.get("tensorrt").build(graph, tmp_path / "e.trt", spec())
    (call,) = trt86.fake.of("IBuilderConfig.set_tactic_sources")
    taken = {source.name for source in trt86.TacticSource if call.args[0] >> int(source) & 1}
    assert taken == {"EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS", "CUDNN"}
    assert outcome.flags["tactic_sources"] == "EDGE_MASK_CONVOLUTIONS JIT_CONVOLUTIONS CUDNN"


def test_an_empty_stand_in_is_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # libc loads and has no cublasCreate_v2, as the stand-ins that satisfy a loader have none.
    fake = {"CUBLAS": ("libc.so.6", "libc.so.6", "cublasCreate_v2"), "ODD": ("libc.so.6", "malloc")}
    monkeypatch.setattr(trt_build, "TACTIC_LIBRARIES", fake)
    assert not trt_build.has_library("CUBLAS")
    assert trt_build.has_library("ODD")
    assert trt_build.has_library("JIT_CONVOLUTIONS")


@pytest.mark.parametrize("variant", ["10.16", "11.4", "rtx"])
def test_later_ones_choose_tactics_themselves(
    variant: str, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_gpu(monkeypatch, backends.Device("GPU", "8.9"))
    with fake_tensorrt.installed(variant) as trt:
        backends.get(trt.__name__).build(graph, tmp_path / "e.trt", spec())
        assert trt.fake.of("IBuilderConfig.set_tactic_sources") == []


# --- profiles -----------------------------------------------------------------------------------


def test_profiles_in_order(
    trt: Any, backend: backends.Backend, graph: Path, tmp_path: Path
) -> None:
    backend.build(graph, tmp_path / "e.trt", spec(WIDE, SMALL, FIXED))
    assert backend.open(tmp_path / "e.trt").ranges == (WIDE, SMALL, FIXED)
    added = [c.result for c in trt.fake.of("IBuilderConfig.add_optimization_profile")]
    assert added == [0, 1, 2]


def test_a_fixed_graph_needs_no_profile(
    trt: Any, backend: backends.Backend, fixed_graph: Path, tmp_path: Path
) -> None:
    backend.build(fixed_graph, tmp_path / "e.trt", spec(FIXED))
    assert "IBuilderConfig.add_optimization_profile" not in trt.fake.names()
    assert backend.open(tmp_path / "e.trt").ranges == (FIXED,)


def test_a_refused_profile_is_an_error(
    trt: Any, backend: backends.Backend, graph: Path, tmp_path: Path
) -> None:
    trt.fake.fail["IBuilderConfig.add_optimization_profile"] = True
    trt.fake.messages["IBuilderConfig.add_optimization_profile"] = "kOPT out of range"
    with pytest.raises(BuildError, match=r"profile 0 \(index -1\).*kOPT out of range"):
        backend.build(graph, tmp_path / "e.trt", spec())
    assert not (tmp_path / "e.trt").exists()


# --- settings -----------------------------------------------------------------------------------


def test_level(trt: Any, backend: backends.Backend, graph: Path, tmp_path: Path) -> None:
    outcome = backend.build(graph, tmp_path / "e.trt", spec(level=4))
    assert [c.args for c in trt.fake.of("IBuilderConfig.builder_optimization_level")] == [(4,)]
    assert outcome.flags["level"] == "4"


def test_level_is_left_alone_unless_asked(
    trt: Any, backend: backends.Backend, graph: Path, tmp_path: Path
) -> None:
    outcome = backend.build(graph, tmp_path / "e.trt", spec())
    assert trt.fake.of("IBuilderConfig.builder_optimization_level") == []
    assert outcome.flags["level"] == "default"


def test_rtx_allows_capture(graph: Path, tmp_path: Path) -> None:
    with fake_tensorrt.installed("rtx") as trt:
        backends.get("tensorrt_rtx").build(graph, tmp_path / "e.trt", spec())
        assert ("REQUIRE_USER_ALLOCATION",) in [
            c.args for c in trt.fake.of("IBuilderConfig.set_flag")
        ]


# --- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        ("Builder.create_network", BuildError, "made no network"),
        ("Builder.create_builder_config", BuildError, "made no builder configuration"),
        ("Builder.build_serialized_network", BuildError, r"built no engine of d\.onnx"),
        ("OnnxParser.parse_from_file", BuildError, r"does not take d\.onnx"),
    ],
)
def test_each_failure_says_what_tensorrt_said(
    trt: Any,
    backend: backends.Backend,
    graph: Path,
    tmp_path: Path,
    call: str,
    kind: type[Exception],
    words: str,
) -> None:
    trt.fake.fail[call] = True
    trt.fake.messages[call] = "Error Code 10: no implementation for node /up"
    with pytest.raises(kind, match=words) as caught:
        backend.build(graph, tmp_path / "e.trt", spec())
    assert "no implementation for node /up" in str(caught.value)
    assert not (tmp_path / "e.trt").exists()


@pytest.mark.parametrize(
    "said",
    [
        "[defaultAllocator.cpp::allocate::20] Error Code 1: Cuda Runtime (out of memory)",
        "Error Code 2: OutOfMemory (no further information)",
        "Requested amount of GPU memory (20971520000 bytes) could not be allocated.",
    ],
)
def test_out_of_memory_is_recognised(
    trt: Any, backend: backends.Backend, graph: Path, tmp_path: Path, said: str
) -> None:
    trt.fake.fail["Builder.build_serialized_network"] = True
    trt.fake.messages["Builder.build_serialized_network"] = said
    with pytest.raises(DeviceMemoryError, match="built no engine") as caught:
        backend.build(graph, tmp_path / "e.trt", spec())
    assert said in caught.value.what
    assert caught.value.fix is not None


def test_builder_that_does_not_start(
    trt: Any, backend: backends.Backend, graph: Path, tmp_path: Path
) -> None:
    trt.fake.fail["Builder"] = True
    with pytest.raises(BackendError, match=r"does not start.*CUDA initialization failure: 35"):
        backend.build(graph, tmp_path / "e.trt", spec())


# --- timing cache -------------------------------------------------------------------------------


def test_timing_cache_name() -> None:
    path = trt_build.timing_cache_path(
        Path("/c/a.timing"), gpu="NVIDIA H200", version="8.6.1", precision="fp16"
    )
    assert path == Path("/c/a-NVIDIA_H200-8.6.1-fp16.timing")


def test_timing_cache_is_kept_between_builds(trt86: Any, graph: Path, tmp_path: Path) -> None:
    backend = backends.get("tensorrt")
    wanted = spec(timing_cache=tmp_path / "deep" / "a.timing")
    first = backend.build(graph, tmp_path / "e.trt", wanted)
    assert first.flags["timing_cache"] == "0 bytes read"
    cache = tmp_path / "deep" / "a-NVIDIA_H200-8.6.1-fp16.timing"
    assert cache.read_bytes() == b"timings"
    assert list(cache.parent.iterdir()) == [cache]
    second = backend.build(graph, tmp_path / "e.trt", wanted)
    assert second.flags["timing_cache"] == "7 bytes read"
    assert second.warnings == ()


def test_plans_and_timing_caches_may_be_large(trt86: Any, graph: Path, tmp_path: Path) -> None:
    backend, engine = backends.get("tensorrt"), tmp_path / "e.trt"
    trt86.fake.timing_cache = bytes(MOST_BYTES + 1)
    for read in (0, MOST_BYTES + 1):
        outcome = backend.build(graph, engine, spec(timing_cache=tmp_path / "a.timing"))
        assert outcome.flags["timing_cache"] == f"{read} bytes read"
    engine.write_bytes(engine.read_bytes().ljust(MOST_BYTES + 1))
    assert backend.open(engine).ranges == (WIDE,)


@pytest.mark.parametrize(
    "call", ["IBuilderConfig.create_timing_cache", "IBuilderConfig.set_timing_cache"]
)
def test_a_refused_timing_cache_is_a_warning(
    trt86: Any, graph: Path, tmp_path: Path, call: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a-NVIDIA_H200-8.6.1-fp16.timing").write_bytes(b"old")
    trt86.fake.fail[call] = 1
    with caplog.at_level(logging.WARNING):
        outcome = backends.get("tensorrt").build(
            graph, tmp_path / "e.trt", spec(timing_cache=tmp_path / "a.timing")
        )
    assert outcome.warnings == ("timing cache refused by TensorRT, started a new one",)
    assert "timing cache refused" in caplog.text
    assert outcome.flags["timing_cache"] == "0 bytes read"


def test_no_timing_cache_at_all_is_a_warning(trt86: Any, graph: Path, tmp_path: Path) -> None:
    trt86.fake.fail["IBuilderConfig.set_timing_cache"] = True
    outcome = backends.get("tensorrt").build(
        graph, tmp_path / "e.trt", spec(timing_cache=tmp_path / "a.timing")
    )
    assert outcome.warnings == ("TensorRT took no timing cache, built without one",)
    assert "timing_cache" not in outcome.flags


def test_a_cache_that_breaks_the_build_is_dropped(trt86: Any, graph: Path, tmp_path: Path) -> None:
    """8.6 was seen to accept a cache that it wrote, and then to fail inside Myelin."""
    cache = tmp_path / "a-NVIDIA_H200-8.6.1-fp16.timing"
    cache.write_bytes(b"poison")
    trt86.fake.fail["Builder.build_serialized_network"] = 1
    trt86.fake.messages["Builder.build_serialized_network"] = "Myelin error"
    outcome = backends.get("tensorrt").build(
        graph, tmp_path / "e.trt", spec(timing_cache=tmp_path / "a.timing")
    )
    (warning,) = outcome.warnings
    assert "built again without it" in warning
    assert "Myelin error" in warning
    assert cache.read_bytes() == b"timings"


def test_a_named_pipe_as_timing_cache_is_a_warning(trt86: Any, graph: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a-NVIDIA_H200-8.6.1-fp16.timing")
    outcome = backends.get("tensorrt").build(
        graph, tmp_path / "e.trt", spec(timing_cache=tmp_path / "a.timing")
    )
    assert all("is a named pipe, expected a file" in warning for warning in outcome.warnings)
    assert len(outcome.warnings) == 2  # not read, not kept


def test_the_second_attempt_has_the_memory_of_the_first(
    trt86: Any, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a-NVIDIA_H200-8.6.1-fp16.timing").write_bytes(b"poison")
    trt86.fake.fail["Builder.build_serialized_network"] = 1
    networks: weakref.WeakSet[Any] = weakref.WeakSet()
    alive: list[int] = []
    create = trt86.Builder.create_network

    def counted(builder: Any, flags: int) -> Any:
        trt86.fake.calls.clear()  # it keeps their arguments
        gc.collect()
        alive.append(len(networks))
        network = create(builder, flags)
        networks.add(network)
        return network

    monkeypatch.setattr(trt86.Builder, "create_network", counted)
    backends.get("tensorrt").build(
        graph, tmp_path / "e.trt", spec(timing_cache=tmp_path / "a.timing")
    )
    assert alive == [0, 0]


def test_a_failure_without_a_cache_is_not_tried_again(
    trt86: Any, graph: Path, tmp_path: Path
) -> None:
    trt86.fake.fail["Builder.build_serialized_network"] = 1
    with pytest.raises(BuildError):
        backends.get("tensorrt").build(
            graph, tmp_path / "e.trt", spec(timing_cache=tmp_path / "a.timing")
        )


def test_a_graph_that_is_refused_is_no_fault_of_the_cache(trt86: Any, tmp_path: Path) -> None:
    (tmp_path / "a-NVIDIA_H200-8.6.1-fp16.timing").write_bytes(b"timings")
    (tmp_path / "x.onnx").write_bytes(b"not onnx")
    wanted = BuildSpec(ranges=(WIDE,), precision="fp16", timing_cache=tmp_path / "a.timing")
    with pytest.raises(BuildError, match=r"does not take x\.onnx"):
        backends.get("tensorrt").build(tmp_path / "x.onnx", tmp_path / "e.trt", wanted)
    assert len(trt86.fake.of("Builder.create_network")) == 1


def test_rtx_says_that_it_has_no_use_for_a_cache(graph: Path, tmp_path: Path) -> None:
    with fake_tensorrt.installed("rtx") as trt:
        outcome = backends.get("tensorrt_rtx").build(
            graph, tmp_path / "e.trt", spec(timing_cache=tmp_path / "a.timing")
        )
    assert "timing cache not used" in outcome.warnings[0]
    assert not {n for n in trt.fake.names() if "timing_cache" in n}


def test_a_cache_that_cannot_be_written_is_a_warning(
    trt86: Any, graph: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    outcome = backends.get("tensorrt").build(
        graph, tmp_path / "e.trt", spec(timing_cache=tmp_path / "file" / "a.timing")
    )
    assert any("not read" in text for text in outcome.warnings)
    assert any("not kept" in text for text in outcome.warnings)


# --- progress -----------------------------------------------------------------------------------


def test_progress_only_grows(
    trt: Any, backend: backends.Backend, graph: Path, tmp_path: Path
) -> None:
    seen: list[tuple[str, int, int]] = []
    backend.build(graph, tmp_path / "e.trt", spec(), progress=lambda *step: seen.append(step))
    done = [step[1] for step in seen]
    assert done == sorted(done)
    assert (seen[0][0], seen[-1]) == ("parse", ("build", 1000, 1000))
    if trt.fake.variant != "8.6":  # it has no progress monitor
        assert ("Building engine", 333, 1000) in seen


@pytest.mark.parametrize("at", ["parse", "build", "Building engine"])
def test_progress_that_stops(trt: Any, graph: Path, tmp_path: Path, at: str) -> None:
    if at == "Building engine" and trt.fake.variant == "8.6":
        at = "build"

    def stop(stage: str, done: int, total: int) -> None:
        if stage == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backends.get(trt.__name__).build(graph, tmp_path / "e.trt", spec(), progress=stop)
    assert not (tmp_path / "e.trt").exists()


def test_ctrl_c_inside_the_monitor(trt1016: Any, graph: Path, tmp_path: Path) -> None:
    """The signal's exception surfaces in the callback, that is, in the middle of C++."""

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "Building engine" and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backends.get("tensorrt").build(graph, tmp_path / "e.trt", spec(), progress=interrupt)
    steps = [c for c in trt1016.fake.names() if c == "Builder.build_serialized_network"]
    assert len(steps) == 1
    assert not (tmp_path / "e.trt").exists()


def test_nested_phases_are_one_bar() -> None:
    seen: list[int] = []
    monitor = trt_build.Monitor(lambda _s, done, _t: seen.append(done))
    monitor.start("all", None, 4)
    monitor.step("all", 1)
    monitor.start("part", "all", 2)
    monitor.step("part", 1)
    monitor.start("deep", "part", 5)
    monitor.step("deep", 5)
    monitor.finish("deep")
    monitor.finish("part")
    monitor.step("all", 2)
    monitor.step("all", 4)
    assert seen == [0, 250, 250, 375, 375, 500, 500, 1000]
