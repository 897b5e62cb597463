"""How a build follows the file of what was measured."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from tune_cases import OTHER, TINY, result, sample

from qvae_trt import backends, store
from qvae_trt.cli import app as cli
from qvae_trt.errors import BenchError
from qvae_trt.profiles import PARTS
from qvae_trt.tune import record
from qvae_trt.tune.record import built_otherwise, follow
from qvae_trt.tune.variants import default_variant


def test_levels_are_followed(tmp_path: Path) -> None:
    file = sample()
    row = replace(file.measurements[1], variant=file.measurements[1].variant.changed("level=4"))
    choice = replace(file.choices["decoder"], variant=row.variant, complete=False)
    file = replace(file, measurements=(row,), choices={"decoder": choice})
    record.save(file, tmp_path / "tune.json")
    backend = backends.get("onnxruntime")
    found = follow(None, engine_dir=tmp_path, backend=backend, precision="fp16", parts=PARTS)
    assert found.variants == {"decoder": row.variant}
    assert found.variants["decoder"].level == 4
    assert found.lines[0].endswith("the encoder was not tuned")
    assert found.lines[1].endswith(
        f"{row.variant}: 8.50 ms, default 10.00 ms, at 64x48 (qvae tune was not finished)"
    )


def test_build_leaves_a_named_pipe_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tune.json")
    backend = backends.get("onnxruntime")
    found = follow(None, engine_dir=tmp_path, backend=backend, precision="fp16", parts=PARTS)
    assert not found.variants
    assert "is a named pipe, expected a file" in found.lines[0]


@pytest.mark.parametrize("content", [b"{", b"", b"\xff", b"[]", b"[" * 100_000])
def test_build_leaves_a_broken_file_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tune.json").write_bytes(content)
    given = {"backend": backends.get("onnxruntime"), "precision": "fp16", "parts": PARTS}
    found = follow(None, engine_dir=tmp_path, **given)
    assert not found.variants
    assert "malformed tune file" in found.lines[0]
    with pytest.raises(BenchError, match="malformed tune file"):
        follow(str(tmp_path / "tune.json"), engine_dir=tmp_path, **given)
    with pytest.raises(BenchError, match="cannot be read"):
        follow(str(tmp_path / "none.json"), engine_dir=tmp_path, **given)
    assert follow("none", engine_dir=tmp_path, **given).lines == ()


def test_build_follows(tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whichever variant won here, build takes the file's."""
    engines = tmp_path / "engines"
    engines.mkdir()
    file = record.load(tuned / "tune.json")
    wanted = default_variant("onnxruntime", "1", "fp32").changed(OTHER)
    choices = {"decoder": replace(file.choices["decoder"], variant=wanted)}
    record.save(replace(file, choices=choices), engines / "tune.json")
    build = ["build", "--mode", "static", "--resolution", "64x48", "--part", "decoder", *TINY]
    data = result(capsys, *build, "--engine-dir", engines)
    assert data["tune"]["used"] is True
    (note,) = data["tune"]["notes"]
    assert f"decoder {wanted}: " in note
    engine = engines / "static" / "64x48" / "vae_decoder.onnx"
    assert store.read_sidecar(engine).key.lowering == wanted.lowering.canonical()
    # Without the file, the same engine is another form of the graph.
    data = result(capsys, *build, "--engine-dir", engines, "--tune", "none", "--dry-run")
    assert data["tune"] == {"file": None, "used": False, "notes": []}
    assert "another form of the graph" in data["engines"][0]["reason"]
    data = result(capsys, *build, "--engine-dir", engines, "--dry-run")
    assert data["engines"][0]["status"] == "kept"
    assert built_otherwise(record.load(engines / "tune.json"), engines) == []
    choices["decoder"] = replace(
        choices["decoder"], variant=default_variant("onnxruntime", "1", "fp32")
    )
    assert built_otherwise(replace(file, choices=choices), engines) == [engine]
    elsewhere = replace(file.key, flavour_version="0.1")
    assert built_otherwise(replace(file, choices=choices, key=elsewhere), engines) == []


def test_engines_with_ranges_are_those_of_the_tuned_lowering(tmp_path: Path) -> None:
    """`build` fits the lowering to the sizes; that makes no engine stale."""
    name = "vae_decoder_multi_profile.trt"
    measured = Path(__file__).parents[2] / "benchmarks/h200/engines/profiles_decoder.trt.json"
    data = json.loads(measured.read_bytes())
    variant = default_variant("tensorrt", "8.6.1", "fp16")
    data["key"]["lowering"] = replace(
        variant.lowering, halves="last_two", attention_chunks=8, norm="conv_wide"
    ).canonical()
    (tmp_path / "profiles").mkdir()
    engine = tmp_path / "profiles" / name
    engine.write_bytes(b"")
    (tmp_path / "profiles" / f"{name}.json").write_text(json.dumps(data))
    file = sample()
    names = ("flavour", "flavour_version", "gpu", "compute_capability", "precision")
    key = replace(file.key, **{name: data["key"][name] for name in names})
    choice = file.choices["decoder"]

    def stale(text: str) -> list[Path]:
        tuned = replace(choice, variant=variant.changed(text))
        return built_otherwise(replace(file, key=key, choices={"decoder": tuned}), tmp_path)

    assert stale("default") == []
    assert stale("attention_chunks=16") == [engine]


def test_build_ignores_what_was_measured_elsewhere(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engines = tmp_path / "engines"
    engines.mkdir()
    file = record.load(tuned / "tune.json")
    record.save(replace(file, key=replace(file.key, gpu="NVIDIA H200")), engines / "tune.json")
    build = ["build", "--mode", "static", "--resolution", "64x48", *TINY, "--dry-run"]
    data = result(capsys, *build, "--engine-dir", engines)
    assert data["tune"]["used"] is False
    assert "gpu NVIDIA H200, expected cpu" in data["tune"]["notes"][0]
    assert cli.main([*build, "--tune", str(engines / "tune.json")]) == 1
    assert "tuned for something else: gpu NVIDIA H200, expected cpu" in capsys.readouterr().err
