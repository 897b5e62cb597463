"""Paths that people have: spaces, other scripts, very long, relative, `~`; through the commands."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import ort_engines
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import qvae_trt
from qvae_trt.cli import app as cli
from qvae_trt.images import Latents, write_latents
from qvae_trt.store import check_engine

TINY_FOLDER = Path(qvae_trt.__file__).parent / "data" / "tiny"
TINY = ["--model", "bundled:tiny", "--backend", "onnxruntime"]
ENGINE = f"static/{ort_engines.STATIC}/vae_decoder.onnx"
NAMES = [
    "with space",
    " space at both ends ",
    "Grüße 日本語 🙂",
    "e\u0301",  # a letter and its accent
    "a'b\"c$(d);e&f|g*?[h]",
    "-dash",
    "%s {0} [bold]",
    "new\nline",
    "n" * 200,
]


@pytest.fixture(scope="module")
def engines(tmp_path_factory) -> Path:
    return ort_engines.shared(tmp_path_factory)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The working folder and, elsewhere, the home."""
    for name in ("here", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "here"


def trip(engines: Path, folder: str, capsys) -> Path:
    """A round trip with engines, picture and result in `folder`; returns the real folder."""
    real = Path(folder).expanduser()
    real.mkdir(parents=True, exist_ok=True)
    shutil.copytree(engines / "static", real / "engines" / "static")
    Image.linear_gradient("L").convert("RGB").resize((96, 64)).save(real / "in.png")
    capsys.readouterr()
    paths = [f"{folder}/in.png", f"--out={folder}/out.png", f"--engine-dir={folder}/engines"]
    assert cli.main(["roundtrip", *paths, *TINY, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [one["engine"] for one in result["passes"]] == ["static", "static"]
    with Image.open(real / "out.png") as picture:
        assert picture.size == (96, 64)
    return real


@pytest.mark.parametrize("name", NAMES)
def test_names_of_folders(engines, here, capsys, name):
    real = trip(engines, f"./{name}", capsys)
    assert cli.main(["inspect", f"./{name}/engines/{ENGINE}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert sorted(p.name for p in real.iterdir()) == ["engines", "in.png", "out.png"]


def test_a_folder_deep_down(engines, here, capsys):
    """Near the longest path that the system takes."""
    deep = "/".join(["d" * 200] * 15)
    assert 3000 < len(str(here / deep)) < 4000
    trip(engines, deep, capsys)


@pytest.mark.parametrize(
    "folder", ["relative", "./a/../relative", "../here/relative", "~", "~/mine"]
)
def test_relative_and_home(engines, here, capsys, folder):
    Path("a").mkdir()
    real = trip(engines, folder, capsys)
    assert (
        real.resolve()
        == (
            (here.parent / "home" / folder[2:]) if folder[0] == "~" else here / "relative"
        ).resolve()
    )
    assert not Path("~").exists()


def test_a_build_in_the_home(engines, here, capsys):
    """What a shell leaves in `--engine-dir=~/…` is no folder called `~`."""
    home = here.parent / "home"
    shutil.copytree(engines / "static", home / "mine" / "static")
    command = ["build", "--mode", "static", "--resolution", str(ort_engines.STATIC), *TINY]
    command += ["--part", "decoder", "--precision", "fp32", "--engine-dir=~/mine", "--json"]
    assert cli.main(command) == 0
    (built,) = json.loads(capsys.readouterr().out)["engines"]
    assert built["status"] == "kept"
    check_engine(home / "mine" / ENGINE)
    assert list(here.iterdir()) == []


def test_a_tune_file_in_the_home(here, capsys):
    """`--tune` takes a word, too, and is no path for Typer."""
    (here.parent / "home" / "tune.json").write_text("{}")
    command = ["build", "--mode", "static", "--resolution", "64x64", "--dry-run", *TINY]
    assert cli.main([*command, "--tune=~/tune.json"]) == 1
    assert f"{here.parent}/home/tune.json: " in capsys.readouterr().err
    assert cli.main([*command, "--tune=none"]) == 0


COMMANDS = {
    "export": "export --out ?",
    "build": "build --mode static --resolution 64x64 --part decoder --engine-dir ?",
    "build tuned": "build --mode static --resolution 64x64 --engine-dir engines --tune ?",
    "verify": "verify --engine-dir ?",
    "verify to": "verify --out ?",
    "bench": "bench --resolution 64x64 --out ?",
    "encode": "encode ? --out out.safetensors",
    "encode to": "encode in.png --out ?.safetensors",
    "decode": "decode ? --out out.png",
    "roundtrip": "roundtrip ? --out out.png",
    "roundtrip to": "roundtrip in.png --out ?.png",
    "profiles list": "profiles list --profiles ?",
    "profiles match": "profiles match 64x64 --engine-dir ?",
    "inspect": "inspect ?",
    "report": "report ? --out report.html",
    "tune": "tune --resolution 64x64 --engine-dir ?",
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("path", ["~no-such-user/x", "d" * 300, "d/" * 3000, "loop/x", "file/x"])
def test_a_path_that_cannot_be(here, capsys, monkeypatch, command, path):
    """Said in words, and nothing is made."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Image.new("RGB", (16, 16)).save("in.png")
    Path("loop").symlink_to("loop")
    Path("file").write_text("a file, no folder")
    words = [word.replace("?", path) for word in COMMANDS[command].split()]
    # A model that is there would be minutes of work before a folder is made.
    model = [] if words[0] in {"profiles", "inspect", "report"} else ["--model", "bundled:tiny"]
    model += ["--backend", "onnxruntime"] if model and words[0] != "export" else []
    before = sorted(here.iterdir())
    code = cli.main([*words, *model])
    shown = capsys.readouterr()
    assert code in {1, 2}, shown.err
    assert "error: " in shown.err or "failed" in shown.err
    assert sorted(here.iterdir()) == before


PIPES = {
    "model": "export --model ?.safetensors --out onnx",
    "weights": "export --model vae --out onnx",
    "profiles": "profiles list --profiles ?.toml",
    "tune": "build --mode static --resolution 64x64 --engine-dir engines --tune ?.json",
    "engine": "inspect ?.onnx",
    "sidecar": "inspect engine.onnx",
    "picture": "encode ?.png --out out.safetensors --model bundled:tiny",
    "latents": "decode ?.safetensors --out out.png --model bundled:tiny",
    "results": "report ? --out report.html",
    "new onnx": "export --model bundled:tiny --part decoder --out .",
    "new report": "verify --engine-dir nothing --model bundled:tiny --out .",
    "new picture": "decode in.safetensors --out ?.png --model bundled:tiny",
    "new latents": "encode in.png --out ?.safetensors --model bundled:tiny",
}
PIPED = {
    "weights": "vae/diffusion_pytorch_model.safetensors",
    "sidecar": "engine.onnx.json",
    "new onnx": "vae_decoder.onnx",
    "new report": "parity.md",
}


@pytest.mark.parametrize("command", PIPES)
def test_a_named_pipe_is_refused_at_once(here, capsys, command):
    """Where a file is read, and where one would be put in its place."""
    Image.new("RGB", (16, 16)).save("in.png")
    write_latents("in.safetensors", Latents(torch.zeros(1, 16, 1, 2, 2), 16, 16))
    Path("engine.onnx").write_text("an engine")
    shutil.copytree(TINY_FOLDER, "vae", ignore=shutil.ignore_patterns("*.safetensors"))
    words = [word.replace("?", "pipe") for word in PIPES[command].split()]
    name = PIPED.get(command) or next(w for w in words if w.startswith("pipe"))
    os.mkfifo(name)
    before = sorted(here.rglob("*"))
    assert cli.main(words) == 1
    shown = capsys.readouterr().err
    assert name in shown
    assert "is a named pipe, expected a file" in shown
    assert stat.S_ISFIFO(Path(name).stat().st_mode)
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("command", ["export", "verify"])
def test_a_folder_that_cannot_be_is_said_before_the_work(here, capsys, monkeypatch, command):
    begun = []
    monkeypatch.setattr("qvae_trt.model.load_model", lambda *_, **__: begun.append("export"))
    monkeypatch.setattr("qvae_trt.verify.verify", lambda *_, **__: begun.append("verify"))
    Path("file").write_text("a file, no folder")
    assert cli.main([command, "--out", "file/x", "--model", "bundled:tiny"]) == 1
    assert begun == []
    words = capsys.readouterr().err
    assert words.startswith("error: cannot write")
    assert words.endswith("or name another folder: --out\n")


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    aspect=st.text(max_size=8)
    | st.lists(st.sampled_from(["..", "/", ":", "16", "9", "~", "\0", " "]), max_size=6).map(
        "".join
    )
)
def test_no_aspect_names_a_folder(here, aspect):
    """`..` in an aspect's name, and all else that is none."""
    known = {"16:9", "9:16", "1:1", "4:3", "3:4", "3:2", "2:3"}
    command = ["build", "--mode", "static", f"--aspect={aspect}", "--dry-run"]
    code = cli.main([*command, *TINY, "--engine-dir", "engines"])
    assert code == (0 if aspect in known else 2)
    assert list(here.iterdir()) == []
