"""Text from files is shown on the terminal, never sent to it, and commands are quoted."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import ort_engines
import pytest
from bench_samples import result
from store_cases import make_sidecar, put_engine

from qvae_trt import store
from qvae_trt.bench import compare, results
from qvae_trt.cli import app as cli
from qvae_trt.cli import output
from qvae_trt.cli.commands.measuring import comparison_table, screen
from qvae_trt.commands import command_line
from qvae_trt.errors import StaleEngineError
from qvae_trt.profiles import Profile, engine_path
from qvae_trt.report import Report

#: Clears the screen, sets the title, colours by an 8-bit code, turns the line around, and begins
#: one that looks like ours.
HOSTILE = "x\x1b[2J\x1b]0;title\x07\x9b31m\x7f\u202e\r\nerror: run: rm -rf ~ #'; rm -rf ~ #"
SIZE = ort_engines.STATIC


def hostile_engine(folder: Path, **key: object) -> Path:
    path = engine_path(folder, "decoder", "static", ".onnx", SIZE)
    fields = {"part": "decoder", "profiles": (Profile.fixed(SIZE),), "flavour": "onnxruntime"}
    sidecar = make_sidecar(**{**fields, **key})
    command = ["qvae", "build", "--engine-dir", str(folder), "--model", HOSTILE]
    sidecar = replace(
        sidecar,
        command=shlex.join(command),
        build_flags={HOSTILE: HOSTILE},
        created=HOSTILE,
        qvae_version=HOSTILE,
        input=replace(sidecar.input, name=HOSTILE),
    )
    put_engine(path, sidecar, b"an engine")
    return path


def said(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a command prints to stdout, after a look at all that it prints."""
    capsys.readouterr()
    cli.main([str(word) for word in words])
    return seen(capsys)


def seen(capsys: pytest.CaptureFixture[str]) -> str:
    shown = capsys.readouterr()
    assert {letter for letter in shown.out + shown.err if not letter.isprintable()} <= {"\n"}
    lines = (shown.out + shown.err).splitlines()
    assert not any(line.strip().startswith("error: run: rm") for line in lines)
    return shown.out


TINY = ("--model", "bundled:tiny", "--backend", "onnxruntime")


@pytest.mark.parametrize("field", ["flavour", "flavour_version", "gpu", "lowering"])
def test_a_sidecar(field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = hostile_engine(tmp_path, **{field: HOSTILE})
    folder = ("--engine-dir", tmp_path)
    said(capsys, "inspect", path)
    said(capsys, "inspect", path, "--verbose")
    said(capsys, "doctor", *folder)
    said(capsys, "profiles", "match", SIZE, *folder)
    said(capsys, "verify", *folder, *TINY)
    build = ("build", "--mode", "static", "--resolution", SIZE, "--dry-run")
    said(capsys, *build, *folder, *TINY)
    data = json.loads(said(capsys, "inspect", path, "--json") or "{}")
    if data:
        assert data["sidecar"]["build_flags"] == {HOSTILE: HOSTILE}, "JSON keeps what is there"


def test_a_backends_name_that_is_none_is_in_no_command(tmp_path: Path) -> None:
    path = hostile_engine(tmp_path, flavour="no; rm -rf ~")
    with pytest.raises(StaleEngineError) as caught:
        store.check_engine(path, expected={"flavour": "onnxruntime"})
    assert "--backend no" not in str(caught.value.fix)
    assert "found no; rm -rf ~" in caught.value.what


@pytest.mark.parametrize(
    "word", ["plain", "a b", "it's", "a\nb", "\x1b[2J\\'é", "\udcff", "漢字\u202e"]
)
def test_a_command_can_be_copied(word: str) -> None:
    line = command_line(["printf", "%s", word])
    assert line.isprintable()
    ran = subprocess.run(["bash", "-c", line], capture_output=True, check=True)
    assert ran.stdout == os.fsencode(word)


def test_a_bench_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = result(model=HOSTILE, machine={"gpu": HOSTILE, HOSTILE: HOSTILE})
    odd = replace(found.cells[0], path=HOSTILE, notes=(HOSTILE,), detail={HOSTILE: HOSTILE})
    found = replace(found, cells=(*found.cells, odd))
    results.save(found, tmp_path / "latency.json")
    said(capsys, "report", tmp_path / "latency.json", "--out", tmp_path / "page.html")
    found = results.load(tmp_path / "latency.json")
    for as_json in (False, True):
        output.settings.as_json = as_json
        output.emit(found.to_dict(), lambda _: screen(Report(found)))
        seen(capsys)
    output.settings.as_json = False
    output.emit({}, lambda _: comparison_table(compare.compare(result(), found)))
    seen(capsys)


@pytest.mark.parametrize("name", ["a\x1b[2Jb", "a\u202eb.toml"])
def test_a_name_of_a_file(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_text(f"[[profile]]\nmin = {HOSTILE!r}\n")
    said(capsys, "profiles", "list", "--profiles", tmp_path / name)
    said(capsys, "inspect", tmp_path / name)
    said(capsys, "decode", tmp_path / name, "--out", tmp_path / "x.png", *TINY)
