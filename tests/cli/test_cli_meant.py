"""What people type by mistake: the line to type instead, said before anything heavy is imported."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from qvae_trt.backends import devices
from qvae_trt.cli import app as cli


def every_command() -> dict[str, Any]:
    commands = typer.main.get_command(cli.app).commands
    nested = {f"profiles {name}": one for name, one in commands["profiles"].commands.items()}
    return {**commands, **nested}


@pytest.mark.parametrize(
    ("typed", "instead"),
    [
        ("build static", "build --mode static"),
        ("build profiles", "build --mode profiles"),
        ("build profile", "build --mode profiles"),
        ("build 1024x1024", "build --mode static --resolution 1024x1024"),
        ("build static 16x9 1024", "build --mode static --aspect 16:9 --resolution 1024x1024"),
        ("build --mode profile", "build --mode profiles"),
        ("build --mode=Static --force", "build --mode=static --force"),
        ("build --aspect 16:9", "build --mode static --aspect 16:9"),
        ("bench 1024x1024", "bench --resolution 1024x1024"),
        ("bench 1024*1024", "bench --resolution 1024x1024"),
        ("bench --out 64x64 64x64", "bench --out 64x64 --resolution 64x64"),
        ("bench --resolutions 64x64", "bench --resolution 64x64"),
        ("verify engines", "verify --engine-dir engines"),
        ("encode a.png a.safetensors", "encode a.png --out a.safetensors"),
        ("profiles 1024×1024", "profiles match 1024x1024"),
        ("buidl --mode static", "build --mode static"),
        ("version", "--version"),
        ("help", "--help"),
        ("help build", "build --help"),
    ],
)
def test_a_mistyped_line_is_answered_with_the_right_one(
    typed: str,
    instead: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "engines").mkdir()
    assert cli.main(typed.split()) == 2
    ran = capsys.readouterr()
    assert ran.out == ""
    assert ran.err.splitlines()[-1] == f"try: qvae {instead}"


@pytest.mark.parametrize("typed", ["bench nonsense", "frobnicate", "encode a b c", "build 16:9 x"])
def test_no_line_is_made_up(typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(typed.split()) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("see: qvae")


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        *(
            (f"{command} {size}", "write it as 1024x1024")
            for command in ("bench --resolution", "profiles match", "tune --resolution")
            for size in ("1024*1024", "1024,1024", "1024×1024", "1024", "1024:1024")
        ),
        ("build --mode static --aspect 16x9", "write it as 16:9"),
        ("build --mode static --aspect 16/9", "write it as 16:9"),
    ],
)
def test_a_size_is_told_how_it_is_written(
    typed: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(typed.split()) == 2
    assert capsys.readouterr().err.splitlines()[-1] == says


def test_the_version_has_a_short_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-V"]) == 0
    assert capsys.readouterr().out.startswith("qvae 0.")


_WRONG = [
    "build --mode nonsense",
    "build static",
    "build --mode static --resolution 10x",
    "build --mode static --aspect 5:4:3",
    "bench --resolution 10x",
    "verify --resolution 10x",
    "tune --resolution 10x",
    "export --out x --resolution 10x",
    "profiles match 10x",
    "encode a.png",
    "nonsense",
]


def test_wrong_arguments_are_refused_before_torch_is_imported() -> None:
    code = (
        "import sys; from qvae_trt.cli.app import main\n"
        "for line in sys.argv[1:]:\n"
        "    assert main(line.split()) == 2, line\n"
        "    heavy = {'torch', 'tensorrt', 'onnx', 'onnxruntime', 'diffusers', 'numpy'}\n"
        "    assert not heavy & set(sys.modules), (line, heavy & set(sys.modules))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, *_WRONG], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("line", _WRONG)
def test_wrong_arguments_are_refused_before_tensorrt_is_asked(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is a GPU, what `auto` means is known only once TensorRT was imported."""
    asked: list[str] = []
    card = devices.Device("NVIDIA H100", "9.0", 80_000_000_000, "580.95.05")
    monkeypatch.setattr(devices, "gpus", lambda: (card,))
    monkeypatch.setattr("qvae_trt.backends.resolve", asked.append)
    assert cli.main(line.split()) == 2
    assert asked == []


@pytest.mark.parametrize("name", sorted(every_command()))
def test_help_has_an_example_that_can_be_typed_and_plain_types(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*name.split(), "--help"]) == 0
    text = capsys.readouterr().out
    (example,) = (line for line in text.splitlines() if line.strip().startswith("Example: "))
    program, *words = shlex.split(example.partition(": ")[2])
    command = every_command()[name]
    assert [program, *words[: len(name.split())]] == ["qvae", *name.split()]
    if name != "profiles":
        command.make_context(name, words[len(name.split()) :])
    options = text.partition("Options:")[2]
    assert not [kind for kind in ("<str>", "<path>", "<int", "<float") if kind in options]
