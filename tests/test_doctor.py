"""What `qvae doctor` says of machines like this one, better ones and broken ones."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import types
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from store_cases import make_sidecar, put_engine

from qvae_trt import backends, doctor
from qvae_trt.backends import Device, Verdict, devices
from qvae_trt.cli import app as cli
from qvae_trt.errors import BackendError
from qvae_trt.profiles import BACKENDS, engine_path

H100 = Device("NVIDIA H100 80GB HBM3", "9.0", 85_000_000_000, "580.95.05")
Usage = namedtuple("Usage", "total used free")


def check(name: str, folder: Path) -> doctor.Check:
    return next(c for c in doctor.diagnose(folder) if c.name == name)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpus", tuple)
    monkeypatch.setattr(devices, "absence", lambda: "no NVIDIA driver (libcuda.so.1 is not there)")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: (H100,))
    monkeypatch.setattr(devices, "gpu", lambda: H100)


class FakeBackend:
    def __init__(self, *, runs: bool = True) -> None:
        self._runs = runs

    def version(self) -> str:
        return "11.4"

    def can_build(self) -> Verdict:
        return Verdict(True, "it builds")

    def can_run(self) -> Verdict:
        return Verdict(self._runs, "compute capability 9.0 is refused", "use tensorrt")


def test_every_check_has_a_state_and_each_problem_a_fix(tmp_path: Path) -> None:
    found = doctor.diagnose(tmp_path)
    names = [c.name for c in found]
    assert {"python", "gpu", *BACKENDS, "torch", "fused path", "disk", "model"} <= set(names)
    assert len(names) == len(set(names))
    for c in found:
        assert c.status in {"ok", "warn", "fail"}
        assert c.detail
        assert c.status == "ok" or c.fix, f"{c.name} says nothing that helps"


def test_a_machine_without_a_gpu_is_no_failure(no_gpu: None, tmp_path: Path) -> None:
    found = check("gpu", tmp_path)
    assert found.status == "warn"
    assert "libcuda" in found.detail
    assert all(c.status != "fail" for c in doctor.diagnose(tmp_path))


def test_a_gpu_is_described(gpu: None, tmp_path: Path) -> None:
    found = check("gpu", tmp_path)
    assert found.status == "ok"
    assert found.detail == (
        "NVIDIA H100 80GB HBM3 (compute capability 9.0, 79 GiB); driver 580.95.05"
    )


def test_a_gpu_without_tensorrt_is_pointed_out(
    gpu: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(backends, "resolve", lambda n: "onnxruntime" if n == "auto" else n)
    found = check("--backend auto", tmp_path)
    assert found.status == "warn"
    assert found.fix == "pip install 'qvae-trt[gpu]'", "TensorRT-RTX refuses an H100"


def test_the_fused_path_needs_no_tensorrt(
    gpu: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    let_fused_run(monkeypatch)
    monkeypatch.setattr(backends, "resolve", lambda n: "onnxruntime" if n == "auto" else n)
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    importing = importlib.import_module

    def without(name: str) -> object:
        if name.startswith("tensorrt"):
            raise fault.kind(f"No module named {name!r}", name=name + fault.lacks)
        return importing(name)

    monkeypatch.setattr("importlib.import_module", without)
    fault = types.SimpleNamespace(kind=ModuleNotFoundError, lacks="")
    for name in ("tensorrt", "tensorrt_rtx", "--backend auto"):
        found = check(name, tmp_path)
        assert (found.status, found.fix) == ("ok", None), found
    for fault.kind, fault.lacks in ((ModuleNotFoundError, "_bindings"), (ImportError, "")):
        for name in ("tensorrt", "tensorrt_rtx"):
            assert check(name, tmp_path).status == "warn", "it is there, and broken"


def test_engines_are_counted_and_foreign_ones_named(tmp_path: Path) -> None:
    assert check("engines", tmp_path).detail == f"none in {tmp_path} yet"
    arguments = ["--model", "bundled:tiny", "--backend", "onnxruntime", "--resolution", "32x32"]
    made = ["build", "--mode", "static", *arguments, "--part", "decoder"]
    assert cli.main([*made, "--engine-dir", str(tmp_path)]) == 0
    found = check("engines", tmp_path)
    assert found.status == "ok"
    assert "1 of onnxruntime" in found.detail
    sidecar = tmp_path / "static" / "32x32" / "vae_decoder.onnx.json"
    text = sidecar.read_text()
    old = re.sub(r'"flavour_version": "[^"]*"', '"flavour_version": "0.1"', text)
    engine = sidecar.with_suffix("")
    for name, content in {"vae_encoder.onnx": old, "vae_encoder.trt": None}.items():
        engine.with_name(name).write_bytes(engine.read_bytes())
        if content is not None:
            engine.with_name(f"{name}.json").write_text(content)
    sidecar.write_text("{}")
    found = check("engines", tmp_path)
    assert found.status == "warn"
    assert "1 of onnxruntime 0.1 on cpu, not for this machine" in found.detail
    assert "1 of unknown origin, with an unreadable sidecar" in found.detail
    assert "1 of unknown origin, without a sidecar" in found.detail
    assert "qvae build" in str(found.fix)


@pytest.fixture
def engine_of_tensorrt(tmp_path: Path) -> Path:
    """An engine with a sound sidecar of TensorRT 8.6 on an H100, in an engine folder."""
    path = engine_path(tmp_path, "decoder", "profiles", ".trt")
    key = {"part": "decoder", "mode": "profiles", "flavour_version": "8.6.1", "gpu": H100.name}
    sidecar = make_sidecar(**key)
    put_engine(path, sidecar, b"an engine")
    return path


def test_an_engine_of_an_absent_backend_is_not_called_unreadable(
    engine_of_tensorrt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    found = check("engines", tmp_path)
    assert found.status == "warn"
    assert f"1 of tensorrt 8.6.1 on {H100.name}, not for this machine (" in found.detail
    assert "tensorrt does not import" in found.detail
    assert "unreadable" not in found.detail


def test_its_sidecar_can_be_inspected_without_that_backend(
    engine_of_tensorrt: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert cli.main(["inspect", "--json", str(engine_of_tensorrt)]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["sidecar"]["key"]["flavour_version"] == "8.6.1"
    assert "not opened" in shown.err
    assert "tensorrt does not import" in shown.err


def test_a_backend_that_builds_and_cannot_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(backends, "get", lambda name: FakeBackend(runs=False))
    found = check("tensorrt_rtx", tmp_path)
    assert found.status == "warn"
    assert "builds: yes; runs: no, compute capability 9.0 is refused" in found.detail
    assert found.fix == "use tensorrt"


def test_without_onnxruntime_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def absent(name: str) -> object:
        raise BackendError(f"{name} does not import", fix=f"pip install {name}")

    monkeypatch.setattr(backends, "get", absent)
    found = doctor.diagnose(tmp_path)
    states = {c.name: c.status for c in found}
    assert (states["tensorrt"], states["onnxruntime"]) == ("warn", "fail")


def test_both_onnxruntimes_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They share a folder; the CPU one hides the CUDA provider of the other."""
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "1.2.3")
    found = check("onnxruntime-gpu", tmp_path)
    assert found.status == "warn"
    assert "pip uninstall -y onnxruntime" in str(found.fix)


def test_a_package_that_does_not_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = importlib.import_module

    def import_module(name: str) -> object:
        if name == "diffusers":
            raise OSError("libsomething.so: cannot open shared object file")
        return real(name)

    monkeypatch.setattr(importlib, "import_module", import_module)
    found = check("diffusers", tmp_path)
    assert found.status == "fail"
    assert "libsomething.so" in found.detail
    assert found.fix == "pip install --force-reinstall diffusers"


def let_fused_run(
    monkeypatch: pytest.MonkeyPatch,
    cuda: bool = True,
    capability: tuple[int, int] = (9, 0),
    triton: bool = True,
    compiler: str | None = "/usr/bin/gcc",
) -> None:
    """A machine on which it runs, but for what is said otherwise."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    module = types.ModuleType("triton.tools.tensor_descriptor") if triton else None
    monkeypatch.setitem(sys.modules, "triton.tools.tensor_descriptor", module)
    monkeypatch.setattr("shutil.which", lambda name: compiler)
    monkeypatch.delenv("CC", raising=False)


@pytest.mark.parametrize(
    ("cuda", "capability", "triton", "compiler", "words"),
    [
        (True, (9, 0), True, "/usr/bin/gcc", "serves any size"),
        (True, (9, 0), True, None, "no C compiler"),
        (True, (7, 5), True, None, "compute capability 8.0 or later, found 7.5"),
        (True, (9, 0), False, None, "Triton 3.4 or later"),
        (False, (9, 0), True, None, "needs a CUDA GPU"),
    ],
)
def test_whether_the_fused_path_serves(
    cuda: bool,
    capability: tuple[int, int],
    triton: bool,
    compiler: str | None,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    let_fused_run(monkeypatch, cuda, capability, triton, compiler)
    found = check("fused path", tmp_path)
    assert (found.status == "ok") == (compiler is not None)
    assert words in found.detail


@pytest.mark.parametrize(
    ("free", "status"), [(100 * 2**30, "ok"), (3 * 2**30, "warn"), (2**20, "fail")]
)
def test_disk(free: int, status: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage(free, 0, free))
    assert check("disk", tmp_path / "not" / "yet" / "there").status == status


def test_an_engine_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "engines").write_text("")
    found = check("disk", tmp_path / "engines")
    assert found.status == "fail"
    assert "expected a folder" in found.detail


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, int], None]:
    """Refuses one right to one folder; root, who may run the tests, is refused none."""

    def refuse(folder: Path, right: int) -> None:
        real = os.access
        monkeypatch.setattr(
            os,
            "access",
            lambda path, mode: not (path == folder and mode & right) and real(path, mode),
        )

    return refuse


def test_a_read_only_folder_serves_the_engines_in_it(
    tmp_path: Path, refused: Callable[[Path, int], None]
) -> None:
    refused(tmp_path, os.W_OK)
    found = check("disk", tmp_path)
    assert (found.status, found.detail) == ("fail", f"{tmp_path}: no permission to write")
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "vae_decoder_multi_profile.onnx").write_text("{}")
    found = check("disk", tmp_path)
    assert found.status == "warn"
    assert "the engines there serve" in found.detail


@pytest.mark.parametrize("name", [".", "static", "profiles", "static/1664x928"])
def test_a_folder_that_cannot_be_read_is_not_called_empty(
    name: str, tmp_path: Path, refused: Callable[[Path, int], None]
) -> None:
    folder = tmp_path / name
    folder.mkdir(parents=True, exist_ok=True)
    refused(folder, os.R_OK)
    found = check("engines", tmp_path)
    assert (found.status, found.detail) == ("warn", f"{folder}: no permission to read")
    assert found.fix is not None and f"chmod u+rX {folder}" in found.fix


def test_a_folder_above_that_cannot_be_entered(
    tmp_path: Path, refused: Callable[[Path, int], None]
) -> None:
    refused(tmp_path, os.X_OK)
    found = check("engines", tmp_path / "engines")
    assert (found.status, found.detail) == ("warn", f"{tmp_path}: no permission to read")


def test_the_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was used"))
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("a name was asked for"))
    assert check("model", tmp_path).status in {"ok", "warn"}


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["doctor", "--json", "--engine-dir", str(tmp_path)]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["ok"] is True
    shown = {c["name"] for c in data["checks"]}
    assert cli.main(["doctor", "--engine-dir", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in shown)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage(1, 0, 1))
    assert cli.main(["doctor", "--engine-dir", str(tmp_path)]) == 1
