"""Bad input: a clear error, exit 1 or 2, nothing half written."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import bench_samples
import pytest
from PIL import Image

from qvae_trt.bench.results import save
from qvae_trt.cli import app as cli

TINY = ["--model", "bundled:tiny", "--backend", "onnxruntime"]


def files(folder: Path) -> list[str]:
    """Every file, a lock's included; sorted."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.linear_gradient("L").convert("RGB").resize((32, 32)).save(path)
    return path


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ("1000x1001", ["1000x1001", "height is 1001", "multiple of 8", "992x1008"]),
        ("0x0", ["0x0", "width is 0", "expected 8 to 16384"]),
        ("99999x99999", ["99999x99999", "99999", "expected 8 to 16384"]),
        ("-8x8", ["is not a size", "expected WIDTHxHEIGHT"]),
        ("big", ["is not a size", "expected WIDTHxHEIGHT"]),
    ],
)
@pytest.mark.parametrize(
    "command",
    [
        ["build", "--mode", "static"],
        ["verify"],
        ["bench"],
        ["export", "--out", "onnx"],
    ],
    ids=lambda words: words[0],
)
def test_impossible_sizes(
    command: list[str],
    size: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([*command, f"--resolution={size}", "--model", "bundled:tiny"]) == 2
    shown = capsys.readouterr()
    assert all(word in shown.err for word in words), shown.err
    assert shown.out == ""
    assert files(tmp_path) == []


@pytest.mark.parametrize("aspect", ["5:4", "16x9", "../..", ""])
def test_unknown_aspect(
    aspect: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["build", "--mode", "static", "--aspect", aspect, *TINY]) == 2
    error = capsys.readouterr().err
    assert "16:9, 9:16, 1:1, 4:3, 3:4, 3:2, 2:3" in error
    assert ("write it as 16:9" if aspect == "16x9" else "--resolution") in error
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('[[profile]]\nmin = "256x256"\nopt = "512x512"\nmax = 7\n', 4, "max"),
        ('[[profile]]\nmin = "256x256"\nopt = "1024x1024"\nmax = "512x512"\n', 3, "min <= opt"),
        ('[[profile]]\nmin = "256x256"\nopt = "512x512\n', 3, ""),
        ('# no profile\nprofiles = "none"\n', 2, "profiles"),
        ("", 1, "[[profile]]"),
    ],
)
def test_malformed_profiles_name_the_line(
    text: str, line: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    engines = tmp_path / "engines"
    command = ["build", "--mode", "profiles", "--profiles", str(file), "--engine-dir", str(engines)]
    assert cli.main([*command, *TINY]) == 1
    error = capsys.readouterr().err
    assert f"{file}, line {line}: " in error
    assert words in error
    assert not engines.exists()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("bundled:huge", "bundled:tiny"),
        ("./nowhere", "bundled:tiny"),
        ("Qwen/No-Such-Model", "bundled:tiny"),
        ("empty", "vae"),
        ("text.safetensors", "safetensors"),
    ],
)
@pytest.mark.parametrize("command", ["build", "export", "bench"])
def test_unknown_models(
    command: str,
    model: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.safetensors").write_text("no tensors here")
    (tmp_path / "engines").mkdir()  # bench warns where there is no such folder
    before = files(tmp_path)
    arguments = {
        "build": ["build", "--mode", "static", "--resolution", "64x64"],
        "export": ["export", "--out", "onnx"],
        "bench": ["bench", "--resolution", "64x64"],
    }[command]
    assert cli.main([*arguments, "--model", model]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert words in shown.err
    assert "Traceback" not in shown.err
    assert files(tmp_path) == before


@pytest.mark.parametrize("command", ["encode", "roundtrip"])
def test_missing_picture(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / ("out.safetensors" if command == "encode" else "out.png")
    assert cli.main([command, str(tmp_path / "none.png"), "--out", str(out), *TINY]) == 1
    assert "none.png" in capsys.readouterr().err
    assert files(tmp_path) == []


@pytest.mark.parametrize("command", ["encode", "roundtrip"])
def test_a_text_named_png(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.png"
    text.write_text("this is no picture\n")
    out = tmp_path / ("out.safetensors" if command == "encode" else "out.png")
    assert cli.main([command, str(text), "--out", str(out), *TINY]) == 1
    error = capsys.readouterr().err
    assert "text.png" in error
    assert "no picture" in error
    assert files(tmp_path) == ["text.png"]


def test_latents_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "latents.safetensors"
    text.write_text("these are no latents\n")
    assert cli.main(["decode", str(text), "--out", str(tmp_path / "out.png"), *TINY]) == 1
    assert "latents.safetensors" in capsys.readouterr().err
    assert files(tmp_path) == ["latents.safetensors"]


@pytest.mark.parametrize("found", ["missing", "a text", "a folder"])
def test_inspecting_what_is_no_engine(
    found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "vae_decoder.onnx"
    if found == "a text":
        path.write_text("no engine")
    if found == "a folder":
        path.mkdir()
    assert cli.main(["inspect", str(path)]) == 1
    assert "vae_decoder.onnx" in capsys.readouterr().err


def test_a_bench_that_cannot_begin_leaves_the_earlier_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "latency.json").write_text("earlier")
    where = ["--resolution", "64x64", "--baseline", "pytorch", "--out", str(tmp_path)]
    assert cli.main(["bench", *where, "--model", str(tmp_path / "none.safetensors")]) == 1
    assert files(tmp_path) == ["latency.json"]
    assert (tmp_path / "latency.json").read_text() == "earlier"


def test_a_comparison_that_cannot_be_made_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = bench_samples.result()
    cells = tuple(cell for cell in old.cells if cell.path == "static")
    save(replace(old, cells=cells), tmp_path / "old.json")
    measured = ["--resolution", "1664x928", "--baseline", "folded", "--model", "bundled:tiny"]
    compared = ["--compare", str(tmp_path / "old.json"), "--out", str(tmp_path)]
    assert cli.main(["bench", *measured, *compared]) == 1
    assert "nothing to compare" in capsys.readouterr().err
    assert files(tmp_path) == ["old.json"]


def test_a_result_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "latency.json"
    text.write_text("{}")
    assert cli.main(["report", str(text), "--out", str(tmp_path / "report.html")]) == 1
    assert "latency.json" in capsys.readouterr().err
    assert files(tmp_path) == ["latency.json"]


# --- the file system refuses ---------------------------------------------------------------------

_BUILD = ["build", "--mode", "static", "--resolution", "32x32", "--part", "decoder", *TINY]


def run_without_privileges(
    arguments: list[str], **options: object
) -> subprocess.CompletedProcess[str]:
    """Root passes every permission bit; without these two capabilities it does not."""

    def drop() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            if os.geteuid() == 0 and libc.prctl(24, capability, 0, 0, 0) != 0:  # PR_CAPBSET_DROP
                raise OSError(ctypes.get_errno(), "prctl")

    return subprocess.run(
        [sys.executable, "-m", "qvae_trt", *arguments],
        capture_output=True, text=True, check=False, preexec_fn=drop, **options,
    )  # fmt: skip


def test_an_engine_folder_without_write_permission(tmp_path: Path) -> None:
    engines = tmp_path / "engines"
    engines.mkdir(mode=0o555)
    ran = run_without_privileges([*_BUILD, "--engine-dir", str(engines)])
    assert ran.returncode == 1, ran.stderr
    assert "ermission" in ran.stderr
    assert str(engines) in ran.stderr
    assert "Traceback" not in ran.stderr
    assert files(engines) == []


def test_an_engine_that_cannot_be_read_is_one_failed_row(tmp_path: Path) -> None:
    engines = tmp_path / "engines"
    locked = engines / "static" / "32x32"
    locked.mkdir(parents=True)
    locked.chmod(0)
    sizes = ["--resolution", "40x40", "--engine-dir", str(engines), "--json"]
    ran = run_without_privileges([*_BUILD, *sizes])
    locked.chmod(0o755)
    assert ran.returncode == 1, ran.stderr
    failed, built = json.loads(ran.stdout)["engines"]
    assert (failed["status"], built["status"]) == ("failed", "built")
    assert "Permission denied" in failed["reason"]
    assert failed["fix"] == f"let this user read and write {locked}, or name another folder"


def test_doctor_of_a_folder_that_cannot_be_entered(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0)
    ran = run_without_privileges(["doctor", "--json", "--engine-dir", str(locked / "engines")])
    assert ran.returncode == 1, ran.stderr
    found = {check["name"]: check for check in json.loads(ran.stdout)["checks"]}
    assert found["engines"]["detail"] == f"{locked}: no permission to read"
    assert found["disk"]["detail"] == f"{locked}: no permission to write"


def test_an_engine_folder_that_is_a_file(tmp_path: Path) -> None:
    engines = tmp_path / "engines"
    engines.write_text("mine")
    ran = run_without_privileges([*_BUILD, "--engine-dir", str(engines)])
    assert ran.returncode == 1, ran.stderr
    assert str(engines) in ran.stderr
    assert engines.read_text() == "mine"


_ON_A_SMALL_DISK = """
mount -t tmpfs -o size=512k none "$0" || exit 99
"$@"
code=$?
find "$0" -type f
exit $code
"""


def test_a_full_disk(tmp_path: Path) -> None:
    """A disk of 512 KiB, in a mount namespace of its own; the engine is larger."""
    engines = tmp_path / "engines"
    engines.mkdir()
    build = [sys.executable, "-m", "qvae_trt", *_BUILD, "--engine-dir", str(engines), "--json"]
    small = ["unshare", "-rm", "sh", "-c", _ON_A_SMALL_DISK, str(engines)]
    ran = subprocess.run([*small, *build], capture_output=True, text=True, check=False)
    if "unshare" in ran.stderr or ran.returncode == 99:
        ran = limited(build)  # no namespaces for this user
    assert ran.returncode == 1, ran.stderr
    assert "Traceback" not in ran.stderr
    result, _, left = ran.stdout.partition("\n}\n")
    (engine,) = json.loads(result + "}")["engines"]
    assert engine["status"] == "failed"
    assert "No space left on device" in engine["reason"] or "too large" in engine["reason"]
    assert engine["fix"]
    assert [name for name in left.split() if not name.endswith(".lock")] == []


def limited(command: list[str]) -> subprocess.CompletedProcess[str]:
    """No file may grow past 64 KiB: the nearest to a full disk that needs no privilege."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))

    return subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limit)
