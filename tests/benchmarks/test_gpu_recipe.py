"""benchmarks/gpu/run.sh: its steps call what is there. The measuring itself needs a GPU."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest
import typer
from attention_memory import FORMS

from qvae_trt.cli.app import app
from qvae_trt.profiles import Refusal, Resolution, choose, load_profiles, load_static_sizes

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu" / "run.sh"
LABELS = re.findall(r"^    ([a-z-][a-z| -]*)\)", SCRIPT.read_text("utf-8"), re.MULTILINE)
STEPS = [step for label in LABELS for step in label.split(" | ")]


def run(folder: Path, *steps: str, **variables: str) -> subprocess.CompletedProcess[str]:
    # The sizes are asked of the package; programs are only named.
    python = folder / "python3"
    real = f'[ "$1" = -c ] && exec {sys.executable} "$@"'
    python.write_text(f'#!/bin/sh\n{real}\necho python3 "$@"\n')
    python.chmod(0o755)
    env = {"PATH": "/usr/bin:/bin", "QVAE": "echo qvae", "PYTHON": str(python), **variables}
    command = ["bash", str(SCRIPT), *steps]
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False
    )


def commands(folder: Path, step: str) -> list[list[str]]:
    """What a step would run."""
    (folder / "out/gpu/bench/decoder-64x64").mkdir(parents=True, exist_ok=True)
    (folder / "out/gpu/bench/decoder-64x64/latency.json").touch()  # what `tables` looks for
    names = {"PYTHON": sys.executable} if step in ("gpu-static", "gpu-profiles") else {}
    done = run(folder, step, **names)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def sizes(words: list[str]) -> list[Resolution]:
    return [Resolution.parse(words[i + 1]) for i, w in enumerate(words) if w == "--resolution"]


def test_the_first_lines_list_every_step():
    listed = SCRIPT.read_text("utf-8").split("# Variables")[0]
    assert len(STEPS) >= 15
    for step in STEPS:
        assert re.search(rf"(#  |,) {step}\b", listed), step


@pytest.mark.parametrize("step", STEPS)
def test_a_step_calls_what_is_there(tmp_path, step):
    called = commands(tmp_path, step)
    assert called
    for program, *words in called:
        if program == "qvae":
            typer.main.get_command(app).commands[words[0]].make_context(words[0], words[1:])
        else:
            files = [word for word in words if word.endswith(".py")]
            assert files
            assert all(Path(file).is_file() for file in files)


def test_the_sizes_are_the_static_ones_and_those_of_the_profiles(tmp_path):
    static, profiles = load_static_sizes().values(), load_profiles()
    called = commands(tmp_path, "bench-decoder")
    opts = {profile.opt for profile in profiles}
    measured = [size for words in called for size in sizes(words)]
    between = [size for size in measured if size not in {*opts, *static}]
    assert len(measured) == len(set(measured)) == len(called)
    assert {*opts, *static} <= set(measured)
    assert len(between) == 4
    for size in between:
        found = choose(size, static=Refusal("none"), profiles=profiles)
        assert found.profile_index is not None


def test_all_forms_of_attention_are_measured(tmp_path):
    called = commands(tmp_path, "attention")
    assert [words[words.index("--forms") + 1] for words in called] == list(FORMS)


def test_other_sizes_can_be_named_and_are_measured_once(tmp_path):
    named = {"SIZES": "64x64", "OTHERS": "64x96 96x64"}
    called = [
        shlex.split(line) for line in run(tmp_path, "bench-decoder", **named).stdout.splitlines()
    ]
    assert [str(sizes(words)[0]) for words in called] == ["64x64", "64x96", "96x64"]
    assert run(tmp_path, "bench-decoder", **named).stdout == ""


def test_a_size_that_failed_is_run_again_and_stops_no_other(tmp_path):
    qvae = tmp_path / "qvae"
    qvae.write_text('#!/bin/sh\necho "$@"\ncase "$*" in *64x64*) exit 1 ;; esac\n')
    qvae.chmod(0o755)
    named = {"SIZES": "64x64", "OTHERS": "64x96", "QVAE": str(qvae)}
    first = run(tmp_path, "bench-decoder", **named)
    assert first.returncode == 1
    assert "bench/decoder-64x64 failed" in first.stderr
    assert [size in first.stdout for size in ("64x64", "64x96")] == [True, True]
    again = run(tmp_path, "bench-decoder", **named)
    assert [size in again.stdout for size in ("64x64", "64x96")] == [True, False]


def test_all_steps_run_on_all_gpus_and_share_the_work(tmp_path):
    done = run(tmp_path, "all", SIZES="64x64", OTHERS="64x96", GPUS="2")
    assert done.returncode == 0, done.stderr
    called = done.stdout.splitlines()
    assert len(called) == len(set(called))
    measured = [
        line for line in called if line.startswith("qvae bench") and "--service" not in line
    ]
    assert len(measured) == 4  # two halves at two sizes


def test_a_python_without_the_package_is_told(tmp_path):
    done = run(tmp_path, "bench-decoder", PYTHON=f"{sys.executable} -I -S")
    assert done.returncode == 1
    assert "qvae_trt" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("steps", [(), ("static",)])
def test_a_wrong_step_is_refused(tmp_path, steps):
    done = run(tmp_path, *steps)
    assert done.returncode == 2
    assert "its first lines name" in done.stderr


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        ({"Format/Datatype": "Channel major FP16 format"}, "Channel major FP16 format"),
        ({"Format": "Channel major format", "Datatype": "Half"}, "Channel major format, Half"),
        ({"Datatype": "Half"}, "Half"),
        ({}, None),
    ],
)
def test_the_kind_of_a_tensor_in_every_tensorrt(
    tensor: dict[str, str], kind: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = types.ModuleType("tensorrt")
    stub.IProfiler = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", stub)
    layers = runpy.run_path(str(ROOT / "benchmarks" / "gpu" / "layers.py"))
    assert layers["kind_of"](tensor) == kind
