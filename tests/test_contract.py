"""What scripts are written against: commands, options, exit codes, file names, Python names."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import qvae_trt
from qvae_trt import profiles
from qvae_trt.cli.app import app
from qvae_trt.profiles import Resolution, engine_path

# Every command with the options that the contract names; --help is everybody's.
COMMANDS = {
    "export": "--model --part --precision --graph --dynamic --static --resolution --out",
    "build": "--mode --aspect --resolution --profiles --model --backend --precision --part "
    "--engine-dir --level --timing-cache --force --dry-run",
    "verify": "--engine-dir --resolution --model --backend",
    "bench": "--resolution --engine-dir --baseline --service --out --model --backend --compare",
    "encode": "--out --model --backend --engine-dir",
    "decode": "--out --model --backend --engine-dir",
    "roundtrip": "--out --model --backend --engine-dir",
    "profiles": "",
    "profiles list": "",
    "profiles match": "--engine-dir",
    "inspect": "",
    "doctor": "",
    "lightx2v": "--engine-dir --out --copy",
    "triton": "--engine-dir --out --link",
    "report": "--out",
    "tune": "--resolution --model --backend --engine-dir",
}
CHOICES = {
    ("export", "--part"): ["encoder", "decoder", "both"],
    ("export", "--precision"): ["fp16", "bf16", "fp32"],
    ("export", "--graph"): ["image", "video"],
    ("build", "--mode"): ["static", "profiles"],
    ("build", "--backend"): ["auto", "tensorrt", "tensorrt_rtx", "onnxruntime"],
}
DEFAULTS = {"--engine-dir": "engines", "--graph": "image", "--backend": "auto"}


def find(name: str) -> object:
    command = typer.main.get_command(app)
    for word in name.split():
        command = command.commands[word]
    return command


def options(name: str) -> dict[str, object]:
    found = {}
    for param in find(name).params:
        for spelling in (*param.opts, *param.secondary_opts):
            found[spelling] = param
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_its_options(name: str) -> None:
    expected = {*COMMANDS[name].split(), "--json", "--verbose", "-v"}
    assert expected <= set(options(name))


def test_there_are_no_other_commands() -> None:
    found = set(typer.main.get_command(app).commands)
    assert found == {name for name in COMMANDS if " " not in name}
    assert set(find("profiles").commands) == {"list", "match"}


@pytest.mark.parametrize(("command", "option"), CHOICES)
def test_choices(command: str, option: str) -> None:
    usage = help_of(command)
    assert f"{option} <{'|'.join(CHOICES[command, option])}>" in usage


def help_of(name: str) -> str:
    ran = run(*name.split(), "--help")
    assert ran.returncode == 0
    assert ran.stderr == ""
    return " ".join(ran.stdout.split())


@pytest.mark.parametrize("option", DEFAULTS)
def test_defaults(option: str) -> None:
    found = {
        str(options(name)[option].default) for name in COMMANDS if option in COMMANDS[name].split()
    }
    # `profiles match` takes engines/ where there is one, and else says what would be built.
    assert found - {"None"} == {DEFAULTS[option]}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qvae_trt", *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["profiles"], 0),
        (["profiles", "match", "1664x928"], 0),
        (["inspect", "nowhere/vae_decoder.onnx"], 1),
        (["no-such-command"], 2),
        (["build"], 2),
        (["build", "--mode", "static", "--level", "6"], 2),
        (["profiles", "match", "928"], 2),
    ],
)
def test_exit_codes(arguments: list[str], code: int) -> None:
    ran = run(*arguments)
    assert ran.returncode == code, ran.stderr
    if code == 0:
        assert ran.stdout
    else:
        assert ran.stdout == ""
        assert ran.stderr.startswith("error: ")
        assert "Traceback" not in ran.stderr


def test_results_are_json_on_request() -> None:
    ran = run("profiles", "--json")
    data = json.loads(ran.stdout)
    assert [entry["size"] for entry in data["static"]] == [
        "1664x928", "928x1664", "1328x1328", "1472x1104", "1104x1472", "1584x1056", "1056x1584",
    ]  # fmt: skip
    # The contract lists these as HxW.
    assert [Resolution.parse(entry["opt"]) for entry in data["profiles"]] == [
        Resolution(512, 512), Resolution(1024, 1024), Resolution(480, 848),
        Resolution(720, 1280), Resolution(1088, 1920), Resolution(1280, 720),
        Resolution(1920, 1088), Resolution(768, 1024), Resolution(1088, 1632),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "size", "part", "path"),
    [
        ("static", "1664x928", "encoder", "static/1664x928/vae_encoder.trt"),
        ("static", "928x1664", "decoder", "static/928x1664/vae_decoder.trt"),
        ("static", "1328x1328", "decoder", "static/1328x1328/vae_decoder.trt"),
        ("static", "1472x1104", "decoder", "static/1472x1104/vae_decoder.trt"),
        ("static", "1104x1472", "decoder", "static/1104x1472/vae_decoder.trt"),
        ("static", "1584x1056", "decoder", "static/1584x1056/vae_decoder.trt"),
        ("static", "1056x1584", "decoder", "static/1056x1584/vae_decoder.trt"),
        ("static", "1280x768", "encoder", "static/1280x768/vae_encoder.trt"),
        ("profiles", None, "encoder", "profiles/vae_encoder_multi_profile.trt"),
        ("profiles", None, "decoder", "profiles/vae_decoder_multi_profile.trt"),
    ],
)
def test_engine_files(mode: str, size: str | None, part: str, path: str) -> None:
    resolution = None if size is None else Resolution.parse(size)
    assert engine_path(Path("E"), part, mode, ".trt", resolution) == Path("E") / path
    onnx = engine_path(Path("E"), part, mode, ".onnx", resolution)
    assert onnx == (Path("E") / path).with_suffix(".onnx")


def test_sizes_in_code_are_height_first() -> None:
    assert Resolution.parse("1664x928") == Resolution(height=928, width=1664)
    assert str(Resolution(928, 1664)) == "1664x928"


def test_only_the_toml_files_hold_shapes(root: Path) -> None:
    shapes = {
        str(size)
        for size in (
            *profiles.load_static_sizes().values(),
            *(p.opt for p in profiles.load_profiles()),
        )
    }
    # Examples in help texts and docstrings name sizes; tables of them do not belong into code.
    for path in sorted((root / "qvae_trt").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in shapes, f"{path}: {node.value} on line {node.lineno}"


def test_the_commands_page_is_up_to_date(root: Path, tmp_path: Path) -> None:
    written = tmp_path / "commands.md"
    command = [sys.executable, str(root / "tools" / "write_commands.py"), str(written)]
    subprocess.run(command, check=True)
    assert (root / "docs" / "commands.md").read_text("utf-8") == written.read_text("utf-8"), (
        "make docs writes it anew"
    )


def test_python_names() -> None:
    for name in ("load_vae", "from_lightx2v_config", "TrtVae", "QvaeError", "__version__"):
        assert name in qvae_trt.__all__
        assert getattr(qvae_trt, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = qvae_trt.no_such_name
