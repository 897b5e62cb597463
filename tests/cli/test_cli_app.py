"""The commands as users type them: what they print, what they refuse, and how soon they answer."""

from __future__ import annotations

import json
import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from qvae_trt.cli import app as cli
from qvae_trt.profiles import load_static_sizes

QVAE = [sys.executable, "-m", "qvae_trt"]


def qvae(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*QVAE, *map(str, arguments)], capture_output=True, text=True, check=False, **options
    )


# --- help ----------------------------------------------------------------------------------------


SMALLEST = """
import typer
app = typer.Typer()
@app.command()
def one(): ...
app()
"""


def test_help_answers_at_once() -> None:
    """Measured in starts of the smallest Typer app, since machines differ, and so do their days.

    Processor time: the clock on the wall counts the tests beside this.
    """

    def seconds(*command: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*command, "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    script = str(Path(sys.executable).with_name("qvae"))
    took = [(seconds(script), seconds(sys.executable, "-c", SMALLEST)) for _ in range(4)]
    ours, smallest = map(min, zip(*took, strict=True))
    assert ours < 3 * smallest


@pytest.mark.parametrize(
    "arguments", ["--help", "build --help", "profiles", "profiles match 1600x1200", "build"]
)
def test_light_commands_import_nothing_heavy(arguments: str) -> None:
    code = (
        "import sys; from qvae_trt.cli.app import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'tensorrt', 'tensorrt_rtx', 'onnx', 'onnxruntime', 'diffusers',"
        "'polygraphy', 'numpy', 'jinja2'} & set(sys.modules);"
        "sys.exit(f'{heavy}' if heavy else 0)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments.split()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_version() -> None:
    assert qvae("--version").stdout.startswith("qvae 0.")


def test_no_command_shows_the_commands() -> None:
    ran = qvae()
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert "roundtrip" in ran.stderr


# --- profiles ------------------------------------------------------------------------------------


def test_profiles_lists_everything() -> None:
    words = qvae("profiles").stdout
    for aspect, size in load_static_sizes().items():
        assert f"{aspect} " in words
        assert f"{size}" in words
    assert qvae("profiles", "list").stdout == words


@pytest.mark.parametrize(
    ("size", "engine", "profile"),
    [
        ("1664x928", "static", None),
        ("1600x1200", "profiles", 8),
        ("512x512", "profiles", 0),
        ("2048x2048", "folded", None),
    ],
)
def test_match_names_the_engine_that_serves_and_why_the_others_do_not(
    size: str, engine: str, profile: int | None, tmp_path: Path
) -> None:
    ran = qvae("profiles", "match", size, "--json", cwd=tmp_path)
    data = json.loads(ran.stdout)
    assert data["engine_dir"] is None
    for part in ("encoder", "decoder"):
        found = data[part]
        assert (found["engine"], found["profile_index"]) == (engine, profile)
        assert sum(candidate["accepted"] for candidate in found["candidates"]) == 1
        assert all(candidate["reason"] for candidate in found["candidates"])


def test_match_names_no_file_where_no_folder_is(tmp_path: Path) -> None:
    data = json.loads(qvae("profiles", "match", "1664x928", "--json", cwd=tmp_path).stdout)
    assert [data[part]["path"] for part in ("encoder", "decoder")] == [None, None]


def test_the_model_of_the_environment_is_that_of_every_list() -> None:
    env = {**os.environ, "QVAE_MODEL": "random:tiny-2.1"}
    words = qvae("profiles", env=env).stdout
    assert "2752x1536" in words
    assert qvae("profiles", "list", env=env).stdout == words
    assert "1664x928" in qvae("profiles", env={**env, "QVAE_MODEL": ""}).stdout


@pytest.mark.parametrize("byte", [b"\xff", b"\x1b"])
def test_a_command_line_of_any_bytes_is_written_down_as_text(byte: bytes) -> None:
    """Engines keep it in their sidecars, which are UTF-8."""
    name = os.fsdecode(b"/tmp/e" + byte)
    cli.main(["profiles", "match", "512x512", "--engine-dir", name])
    line = cli.output.settings.command
    assert line.encode().decode() == line
    bash = ["bash", "-c", f"printf %s {line.rpartition(' ')[2]}"]
    assert subprocess.run(bash, capture_output=True, check=True).stdout == os.fsencode(name)


def test_match_looks_into_a_folder(tmp_path: Path) -> None:
    """Engines that are not there are not promised."""
    (tmp_path / "engines").mkdir()
    ran = qvae("profiles", "match", "1664x928", "--json", cwd=tmp_path)
    data = json.loads(ran.stdout)
    assert data["engine_dir"] == "engines"
    assert data["decoder"]["engine"] == "folded"
    ran = qvae("profiles", "match", "1664x928", "--engine-dir", tmp_path / "none")
    assert ran.returncode == 1
    assert "no such folder" in ran.stderr
    program, name, *words = shlex.split(ran.stderr.splitlines()[-1])
    assert program == "qvae"
    # What helps is a command that can be typed.
    typer.main.get_command(cli.app).commands[name].make_context(name, words)


# --- defaults from the environment ---------------------------------------------------------------

_VARIABLES = {
    "--model": "QVAE_MODEL",
    "--backend": "QVAE_BACKEND",
    "--engine-dir": "QVAE_ENGINE_DIR",
}


def test_every_command_takes_its_defaults_from_the_environment() -> None:
    commands = typer.main.get_command(cli.app).commands
    every = {**commands, **{f"profiles {n}": c for n, c in commands["profiles"].commands.items()}}
    found = {
        (name, option, parameter.envvar)
        for name, command in every.items()
        for parameter in command.params
        for option in parameter.opts
        if option in _VARIABLES
    }
    # LightX2V opens engines of tensorrt alone; Triton's backend is a matter of its server.
    wrong = {one for one in found if one[2] != _VARIABLES[one[1]]}
    assert wrong == {("lightx2v", "--backend", None), ("triton", "--backend", None)}
    assert {option for _, option, _ in found} == set(_VARIABLES)


def test_an_option_goes_before_the_environment_and_help_names_it(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    env = {**os.environ, "QVAE_ENGINE_DIR": str(tmp_path / "mine"), "QVAE_BACKEND": "onnxruntime"}
    match = ["profiles", "match", "1664x928", "--json"]
    ran = qvae(*match, cwd=tmp_path, env=env)
    data = json.loads(ran.stdout)
    assert data["engine_dir"] == str(tmp_path / "mine")
    assert "vae_decoder.onnx" in data["decoder"]["candidates"][0]["reason"]
    ran = qvae(*match, "--engine-dir", tmp_path / "none", cwd=tmp_path, env=env)
    assert f"{tmp_path / 'none'}: no such folder" in ran.stderr
    ran = qvae(*match, cwd=tmp_path, env={**env, "QVAE_BACKEND": "cuda"})
    assert ran.returncode == 2
    assert "QVAE_BACKEND" in ran.stderr
    assert "QVAE_ENGINE_DIR" in qvae("verify", "--help", env={**env, "COLUMNS": "120"}).stdout


# --- whatever is typed, never a bug --------------------------------------------------------------

# `?` becomes a value: half of the lines are whole commands, so that the work behind them begins.
_COMMANDS = [
    "export",
    "export --out ?",
    "export --out ? --resolution ?",
    "build --mode static",
    "build --mode static --resolution ?",
    "build --mode static --aspect ?",
    "build --mode profiles --profiles ?",
    "build --mode ? --backend ? --part ? --precision ?",
    "verify",
    "verify --engine-dir ?",
    "bench --resolution ?",
    "bench --resolution 64x64 --baseline ? --out ?",
    "bench --resolution 64x64 --compare ?",
    "encode ? --out ?",
    "encode {picture} --out ?",
    "encode {picture} --out latents.safetensors --engine-dir ?",
    "decode ? --out ?",
    "roundtrip {picture} --out ?",
    "roundtrip ? --out ?",
    "profiles",
    "profiles list --profiles ?",
    "profiles match ?",
    "profiles match ? --engine-dir ?",
    "inspect ?",
    "lightx2v --out ? --engine-dir ?",
    "triton --out ? --engine-dir ? --backend ?",
    "report ? --out ?",
    "tune --resolution ? --part ?",
    "doctor ?",
    "",
]
_OPTIONS = [
    "--model", "--part", "--precision", "--graph", "--dynamic", "--static", "--resolution", "--out",
    "--mode", "--aspect", "--profiles", "--backend", "--engine-dir", "--level", "--timing-cache",
    "--force", "--dry-run", "--json", "-v", "--baseline", "--service", "--compare", "--margin",
    "--budget", "--part=both", "--", "-", "--no-such-option",
]  # fmt: skip
_VALUES = [
    "", " ", "0x0", "64x64", "1000x1001", "99999x99999", "-8x8", "1e3x8", "８x８", "64x64x64",
    "16:9", "5:4", "../..", "a/../../b", "static", "fp16", "onnxruntime", "tensorrt", "nan", "inf",
    "-1", "1" * 5000, "x" * 300, "\x00", "\ud800", "日本語", "a b", "~", ".", "no-such-file.png",
    "%s{0}[b]",
]  # fmt: skip
_TOKENS = st.one_of(
    st.sampled_from(_OPTIONS),
    st.sampled_from(_VALUES),
    st.text(max_size=12).filter(lambda text: "completion" not in text),
)


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    words = draw(st.sampled_from(_COMMANDS)).split()
    filled = [draw(_TOKENS) if word == "?" else word for word in words]
    return filled + draw(st.lists(_TOKENS, max_size=3))


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(line=lines())
def test_no_argument_is_a_bug(
    line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    picture = tmp_path / "picture.png"
    Image.new("RGB", (16, 16)).save(picture)
    # A model that is not there: no command gets as far as minutes of work.
    model = ["--model", "./no-such-folder"] if takes_model(line) else []
    words = [str(picture) if word == "{picture}" else word for word in line]
    before = snapshot(tmp_path)
    code = cli.main([*words, *model])
    assert code in {0, 1, 2}, line
    assert snapshot(tmp_path) == before, "something was left behind"


def takes_model(line: list[str]) -> bool:
    return bool(line) and line[0] not in {"profiles", "inspect", "report", "doctor"}


def test_every_command_is_tried() -> None:
    tried = {line.split()[0] for line in _COMMANDS if line}
    assert tried == set(typer.main.get_command(cli.app).commands)


def snapshot(folder: Path) -> set[str]:
    return {os.path.join(at, name) for at, _, names in os.walk(folder) for name in names}  # noqa: PTH118
