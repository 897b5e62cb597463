"""SIGTERM and Ctrl-C in the midst of `qvae build`: the old engine stays, nothing else does."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import ort_engines
import pytest

from qvae_trt.store import check_engine

BUILD = ["build", "--mode", "static", "--resolution", str(ort_engines.STATIC), "--force", "-v"]
BUILD += ["--part", "decoder", "--precision", "fp32"]
BUILD += ["--model", "bundled:tiny", "--backend", "onnxruntime"]


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", ["trace decoder", "optimize 0/1"])
def test_a_build_ended_by_a_signal(tmp_path_factory, tmp_path, number, moment):
    engines, temporary = tmp_path / "engines", tmp_path / "tmp"
    size = f"static/{ort_engines.STATIC}"
    shutil.copytree(ort_engines.shared(tmp_path_factory) / size, engines / size)
    temporary.mkdir()
    before = files(engines)
    process = subprocess.Popen(
        [sys.executable, "-m", "qvae_trt", *BUILD, "--engine-dir", engines],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(temporary)},
        # What runs in a shell's background has SIGINT ignored, and so have its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if moment in line:
            process.send_signal(number)
            moment = "once is enough"
    out, _ = process.communicate(timeout=120)
    assert (process.returncode, said[-1]) == (130, "interrupted\n"), "".join(said)
    assert out == ""
    assert not any("Traceback" in line for line in said)
    assert files(engines) == before
    for part in ("encoder", "decoder"):
        check_engine(engines / size / f"vae_{part}.onnx")
    assert list(temporary.iterdir()) == []
