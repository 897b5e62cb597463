"""Each command names the one that goes on from where it ended."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import ort_engines
import pytest

from qvae_trt.backends import devices
from qvae_trt.cli import app as cli


def test_auto_on_a_gpu_without_tensorrt_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = devices.Device("NVIDIA GeForce RTX 5090", "12.0", 34_000_000_000, "580.95.05")
    monkeypatch.setattr(devices, "gpus", lambda: (card,))
    monkeypatch.setattr("qvae_trt.backends.resolve", lambda name: "onnxruntime")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["profiles", "match", "512x512"]) == 0
    assert "--backend auto is onnxruntime here" in capsys.readouterr().err
    assert cli.main(["profiles", "match", "512x512", "--backend", "onnxruntime"]) == 0
    assert "warning" not in capsys.readouterr().err


def test_match_names_the_build_that_would_help(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--engine-dir", str(tmp_path), "--backend", "onnxruntime"]
    assert cli.main(["profiles", "match", "512x512", *where]) == 0
    assert "qvae build --mode static --resolution 512x512" in capsys.readouterr().err


def test_match_with_another_vae_takes_no_engine_and_names_its_build(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ort_engines.shared(tmp_path_factory)
    where = ["--model", "random:tiny-2.1", "--backend", "onnxruntime", "--engine-dir", str(folder)]
    assert cli.main(["profiles", "match", "96x64", *where, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    for part in ("encoder", "decoder"):
        assert shown[part]["engine"] == "folded"
        reason = shown[part]["candidates"][0]["reason"]
        assert "found Qwen-Image, expected Qwen-Image-2.1" in reason
        assert "--model MODEL" in reason
    assert cli.main(["profiles", "match", "512x512", *where]) == 0
    line = capsys.readouterr().err.splitlines()[-1]
    assert shlex.split(line.partition(": ")[2])[-6:] == where


def test_inspect_of_a_folder_names_an_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "static" / "64x64"
    folder.mkdir(parents=True)
    (folder / "vae_decoder.onnx").write_bytes(b"")
    assert cli.main(["inspect", str(tmp_path)]) == 1
    assert f"qvae inspect {folder / 'vae_decoder.onnx'}" in capsys.readouterr().err


def test_inspect_of_an_empty_folder_names_a_build_that_can_be_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["inspect", str(tmp_path)]) == 1
    assert f"\nqvae build --mode static --engine-dir {tmp_path}\n" in capsys.readouterr().err


def test_inspect_fits_a_screen_and_verbose_has_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    where = ["--model", "bundled:tiny", "--backend", "onnxruntime"]
    size = ["--resolution", "64x64", "--part", "decoder"]
    assert cli.main(["build", "--mode", "static", *size, *where]) == 0
    sidecar = Path("engines/static/64x64/vae_decoder.onnx.json")
    capsys.readouterr()
    assert cli.main(["inspect", str(sidecar)]) == 0
    short = capsys.readouterr().out
    assert len(short.splitlines()) <= 52
    assert "latents, float16, 1x16x1x8x8" in short
    assert cli.main(["inspect", str(sidecar), "--verbose"]) == 0
    long = capsys.readouterr().out
    weights = json.loads(sidecar.read_text())["key"]["weights_sha256"]
    assert weights in long
    assert weights not in short
    assert len(long.splitlines()) > 2 * len(short.splitlines())
