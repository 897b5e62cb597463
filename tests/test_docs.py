"""README and guides: what they show runs, what they link to is there, both languages agree."""

from __future__ import annotations

import ast
import html
import inspect
import json
import re
import shlex
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bench_samples
import ort_engines
import pytest
import typer
from PIL import Image

import qvae_trt
from qvae_trt.bench.results import ServiceRow, save
from qvae_trt.cli.app import app, main
from qvae_trt.kinds import QWEN_IMAGE
from qvae_trt.profiles import Resolution

SLOW = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
ENGLISH = sorted((ROOT / "docs" / "en").glob("*.md"))
CHINESE = sorted((ROOT / "docs" / "zh").glob("*.md"))
API = ROOT / "docs" / "api.md"
FAULTS = ROOT / "docs" / "faults.md"
AT_THE_ROOT = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES = [*AT_THE_ROOT, ROOT / "docs" / "index.md", FAULTS, *ENGLISH, *CHINESE]
PAIRS = [path.name for path in ENGLISH]

_FENCE = re.compile(r"(<!-- run -->\n)?^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_MARKED = re.compile(r"<!-- f (\S+) -->(.*?)<!-- /f -->")
_BLOCK = re.compile(r"<!-- block (\S+) -->.*?<!-- /block -->", re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_SIZE = re.compile(r"\b\d{2,5}x\d{2,5}\b")
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def text_of(page: Path) -> str:
    return page.read_text("utf-8")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[tuple[bool, str]]:
    """The fenced blocks of a language: whether a test runs it, and its text."""
    return [
        (bool(run), body) for run, kind, body in _FENCE.findall(text_of(page)) if kind == language
    ]


def prose(page: Path) -> str:
    """A page without its code blocks and without what a script writes into it."""
    text = _MARKED.sub("", _BLOCK.sub("", _FENCE.sub("", text_of(page))))
    return re.sub(r"<!--.*?-->", "", text)


def commands(page: Path) -> list[list[str]]:
    """Every shell command of a page's blocks, as arguments, without comments."""
    found = []
    for _, body in blocks(page, "sh"):
        for line in body.splitlines():
            words = shlex.split(line, comments=True)
            if words:
                found.append(words)
    return found


def spans(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(page))


# --- commands -----------------------------------------------------------------------------------


def all_qvae_commands() -> list[list[str]]:
    """Those in blocks, and those in a line that have more than a name."""
    found = [words for page in PAGES for words in commands(page) if words[0] == "qvae"]
    for page in PAGES:
        for span in spans(page):
            if span.startswith("qvae ") and "…" not in span:
                words = shlex.split(span)
                if len(words) > 2 or words[1] == "doctor":
                    found.append(words)
    return [list(words) for words in dict.fromkeys(map(tuple, found))]


@pytest.mark.parametrize("words", all_qvae_commands(), ids=" ".join)
def test_commands_are_those_of_the_command_line(words):
    if words[1:2] == ["build"] and "--mode" not in words:
        words = [*words, "--mode", "static"]  # in a line, where the mode is the reader's
    if words[1:2] == ["export"] and "--out" not in words:
        words = [*words, "--out", "onnx"]
    _parse(typer.main.get_command(app), words[1:])
    for option, value in pairwise(words):
        if option == "--resolution":
            assert str(Resolution.parse(value)) == value


def _parse(command: Any, words: list[str]) -> None:
    """As Typer parses it; raises what it would tell the user."""
    if not hasattr(command, "commands"):
        command.make_context(command.name, list(words))
        return
    if not words or words[0].startswith("-"):
        command.make_context("qvae", list(words))
        return
    assert words[0] in command.commands, f"no command {words[0]}"
    _parse(command.commands[words[0]], words[1:])


def test_options_named_in_a_line_exist():
    # Of hf, ComfyUI, SGLang, Docker, and of this project's examples and tools.
    known = {"--include", "--fp", "--component-paths", "--file", "--tag", "--rm", "--gpus"}
    known |= {
        "--terminal",
        "--report",
        "--volume",
        "--queue",
        "--workers",
        "--replicas",
        "--port",
        "--normalised",
        "--out",
    }
    pending = [typer.main.get_command(app)]
    while pending:
        command = pending.pop()
        pending += getattr(command, "commands", {}).values()
        for parameter in command.params:
            known |= {*parameter.opts, *parameter.secondary_opts}
    for page in PAGES:
        for span in spans(page):
            for option in re.findall(r"(?<!\S)--[a-z-]+", span):
                assert option in known, f"{name_of(page)}: {span}"


def test_make_targets_and_extras_exist():
    makefile = text_of(ROOT / "Makefile")
    project = text_of(ROOT / "pyproject.toml")
    for page in PAGES:
        text = text_of(page)
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{name_of(page)}: {target}"
        for extra in re.findall(r"'qvae-trt\[(\w+)\]'", text):
            assert re.search(rf"^{extra} = \[", project, re.MULTILINE), f"{name_of(page)}: {extra}"


def test_the_versions_that_were_tested_are_the_pinned_ones():
    pinned = dict(re.findall(r"^([\w-]+)==(\d+\.\d+)", text_of(ROOT / "constraints.txt"), re.M))
    told = "".join(re.findall(r"^\| any x86-64.*$", text_of(ROOT / "README.md"), re.M))
    called = {"ONNX Runtime": "onnxruntime", "PyTorch": "torch", "diffusers": "diffusers"}
    for name, package in (called | {"TensorRT-RTX": "tensorrt_rtx"}).items():
        assert f"{name} {pinned[package]}" in told


def test_no_other_programs_are_asked_for():
    for page in PAGES:
        assert {words[0] for words in commands(page)} <= {"qvae", "make", "pip", "hf"}


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """A folder as the guides assume it: with a picture."""
    picture = ROOT / "qvae_trt" / "data" / "pictures" / "astronaut.jpg"
    with Image.open(picture) as file:
        file.crop((128, 0, 384, 256)).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("size", ["96x96", pytest.param("256x256", marks=pytest.mark.slow)])
def test_what_is_to_run_runs(workplace, capsys, size):
    """The blocks marked so, in the guides' order, in one folder; smaller where time is short."""
    with Image.open("photo.png") as file:
        file.resize([int(side) for side in size.split("x")]).save("photo.png")
    order = ["quickstart.md", *(name for name in PAIRS if name != "quickstart.md")]
    ran = 0
    for name in order:
        for run, body in blocks(ROOT / "docs" / "en" / name, "sh"):
            for line in body.splitlines() if run else ():
                words = shlex.split(line.replace("256x256", size), comments=True)
                if words[1] == "bench":
                    words += ["--budget", "0.2"]
                assert main(words[1:]) == 0, f"{name}: {line}\n{capsys.readouterr().err}"
                ran += 1
    assert ran >= 10
    for made in ("out/bench/latency.md", "out/report.html", "out/roundtrip.png"):
        assert (workplace / made).stat().st_size > 0, made


def test_what_needs_no_gpu_is_run():
    for page in PAGES:
        for run, body in blocks(page, "sh"):
            if "bundled:tiny" in body:
                assert run, f"{name_of(page)}: a block with bundled:tiny that no test runs"


@pytest.mark.slow
def test_every_command_runs_small(workplace, capsys):
    """Commands for a GPU and the real model too, with the bundled one and sizes of a sixth."""
    small: dict[str, str] = {}

    def shrunk(text: str) -> str:
        size = Resolution.parse(text)
        sides = [max(64, round(side / 6 / 16) * 16) for side in (size.width, size.height)]
        small[text] = f"{sides[0]}x{sides[1]}"
        return small[text]

    Path("my_profiles.toml").write_text(
        '[[profile]]\nmin = "64x64"\nopt = "128x128"\nmax = "320x320"\n'
    )
    Path("old").mkdir()
    ran = []
    for name in ["quickstart.md", *(name for name in PAIRS if name != "quickstart.md")]:
        for words in commands(ROOT / "docs" / "en" / name):
            # LightX2V opens the seven sizes alone: test_lightx2v_folder.py runs that command.
            if words[0] != "qvae" or words in ran or words[1] in ("doctor", "inspect", "lightx2v"):
                continue
            given = list(words[1:])
            for index, word in enumerate(given):
                if given[index - 1] == "--resolution" and word != "256x256":
                    given[index] = shrunk(word)
                elif given[index - 1] == "--aspect":
                    given[index - 1 : index + 1] = ["--resolution", shrunk("1664x928")]
                elif given[index - 1] == "--backend":
                    given[index] = "onnxruntime"
                elif given[index - 1] == "--model":
                    given[index] = "bundled:tiny"
            if given[0] == "tune":
                given += ["--backend", "onnxruntime", "--budget", "0.1"]
            wanting = ("build", "verify", "bench", "roundtrip", "tune")
            if given[0] in wanting and "--model" not in given:
                given += ["--model", "bundled:tiny"]
            if given[0] in ("build", "triton"):
                given += ["--backend", "onnxruntime"]
                if "static" in given and "--resolution" not in given:
                    given += ["--resolution", shrunk("1664x928")]
                if "profiles" in given and "--profiles" not in given:
                    given += ["--profiles", "my_profiles.toml"]
            if given[0] == "bench":
                given += ["--budget", "0.1"]
                if "--baseline" not in given:  # torch.compile takes a minute a size on a CPU
                    given += ["--baseline", "pytorch", "--baseline", "folded"]
            if "--compare" in given:
                bench = ["bench", "--resolution", shrunk("1024x1024"), "--model", "bundled:tiny"]
                bench += ["--baseline", "pytorch", "--budget", "0.1", "--out", "old"]
                assert main(bench) == 0
                given[given.index("--margin") + 1] = "10"  # a shared CPU is no place to compare
            assert main(given) == 0, f"{name}: {words} as {given}\n{capsys.readouterr().err}"
            ran.append(words)
    assert len(ran) >= 18


# --- Python -------------------------------------------------------------------------------------


PYTHON = [(page, body) for page in PAGES for _, body in blocks(page, "python")]


@pytest.mark.parametrize(("page", "body"), PYTHON, ids=lambda value: getattr(value, "name", ""))
def test_examples_call_what_is_there(page, body):
    tree = ast.parse(body)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "qvae_trt"
        ):
            assert node.attr in qvae_trt.__all__
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = {
                "load_vae": qvae_trt.load_vae,
                "from_lightx2v_config": qvae_trt.from_lightx2v_config,
                "release_memory": qvae_trt.TrtVae.release_memory,
                "memory": qvae_trt.TrtVae.memory,
            }.get(node.func.attr)
            if called is not None:
                names = set(inspect.signature(called).parameters)
                assert {keyword.arg for keyword in node.keywords} <= names
        if isinstance(node, ast.ImportFrom) and node.module == "diffusers":
            import diffusers

            assert all(hasattr(diffusers, alias.name) for alias in node.names)


def test_methods_named_in_a_line_exist():
    for page in PAGES:
        for name in re.findall(r"\bvae\.(\w+)\(", "\n".join(spans(page))):
            assert hasattr(qvae_trt.TrtVae, name), f"{name_of(page)}: vae.{name}"


def test_the_readme_example_draws_a_picture(tmp_path, monkeypatch, capsys):
    """As it stands; the model and the size are small ones."""
    import diffusers
    import tiny_pipelines as small
    import torch

    from qvae_trt.runtime import vae as runtime

    ((run, body),) = blocks(ROOT / "README.md", "python")
    assert run
    monkeypatch.chdir(tmp_path)

    def pipeline(_source: str, *, torch_dtype: Any) -> Any:
        assert torch_dtype is torch.bfloat16
        made = diffusers.QwenImagePipeline(
            vae=ort_engines.tiny().vae,
            scheduler=small.scheduler(),
            text_encoder=small.text_encoder(),
            tokenizer=small.tokenizer(tmp_path),
            transformer=small.transformer(),
        )
        made.set_progress_bar_config(disable=True)
        return made

    called = diffusers.QwenImagePipeline.__call__

    def small_picture(self: Any, prompt: str, **given: Any) -> Any:
        assert (given["width"], given["height"]) == (1664, 928)
        size = {"width": ort_engines.STATIC.width, "height": ort_engines.STATIC.height}
        return called(self, prompt, num_inference_steps=2, **size)

    monkeypatch.setattr(diffusers.QwenImagePipeline, "from_pretrained", staticmethod(pipeline))
    monkeypatch.setattr(diffusers.QwenImagePipeline, "__call__", small_picture)
    monkeypatch.setattr(diffusers.QwenImagePipeline, "to", lambda self, _place: self)
    monkeypatch.setattr(runtime, "load_model", lambda _source: ort_engines.tiny())
    if torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    space: dict[str, Any] = {}
    exec(compile(body, "README.md", "exec"), space)
    assert space["picture"].size == (ort_engines.STATIC.width, ort_engines.STATIC.height)
    assert "served: folded 1" in capsys.readouterr().out, "there is no GPU for the fused path"


def test_the_warm_up_example_leaves_nothing_to_load(tmp_path, tmp_path_factory, monkeypatch):
    """As it stands; the model and the sizes are small ones."""
    import torch

    from qvae_trt.runtime import vae as runtime
    from qvae_trt.runtime.engine import Engine

    page = ROOT / "docs" / "en" / "diffusers.md"
    ((run, body),) = [block for block in blocks(page, "python") if "warm_up" in block[1]]
    assert run
    static, other = ort_engines.STATIC, Resolution(128, 128)
    for size, small in (("928, 1664", static), ("1328, 1328", other)):
        assert size in body
        body = body.replace(size, f"{small.height}, {small.width}")
    (tmp_path / "engines").symlink_to(ort_engines.shared(tmp_path_factory))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime, "load_model", lambda _source: ort_engines.tiny())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    opened: list[str] = []
    real = Engine.open

    def open_(engine: Any, *purpose: Any, **given: Any) -> Any:
        opened.append(engine.path.name)
        return real(engine, *purpose, **given)

    monkeypatch.setattr(Engine, "open", open_)
    space: dict[str, Any] = {}
    exec(compile(body, page.name, "exec"), space)
    loaded = ["vae_decoder.onnx", "vae_decoder_multi_profile.onnx"]
    assert opened == loaded
    for size in (static, other):
        space["vae"].decode(torch.zeros(1, 16, 1, *QWEN_IMAGE.latents_of(size)))
    assert opened == loaded, "the first requests load nothing"


def test_the_lightx2v_configuration_is_taken(monkeypatch, tmp_path_factory):
    from qvae_trt.runtime import lightx2v

    ((_, body),) = blocks(ROOT / "docs" / "en" / "lightx2v.md", "json")
    monkeypatch.setattr(lightx2v, "load_model", lambda _source: ort_engines.tiny())
    config = json.loads(body) | {"vae_path": "weights"}
    vae = qvae_trt.from_lightx2v_config(config, backend="onnxruntime", fallback="silent")
    assert callable(vae.decode)
    assert callable(vae.encode_vae_image)


def test_the_lightx2v_runner_runs(tmp_path_factory, monkeypatch):
    """Inside what it asks of LightX2V: a registry, a runner that calls its VAE, and `infer.main`,
    which makes the runner of the configuration's name.
    """
    import torch

    from qvae_trt.runtime import lightx2v

    page = ROOT / "docs" / "en" / "lightx2v.md"
    (body,) = [body for _, body in blocks(page, "python") if "RUNNER_REGISTER" in body]
    path = ort_engines.shared(tmp_path_factory) / "static"
    config = {"model_path": "model", "trt_vae_config": {"trt_engine_path": str(path)}}

    class QwenImageRunner:
        def __init__(self, config: dict[str, Any]) -> None:
            self.config = config
            self.vae = self.load_vae()

        def load_vae(self) -> None:
            raise AssertionError("its own VAE")

    registry: dict[str, Any] = {"qwen_image": QwenImageRunner}
    made: list[Any] = []
    infer = SimpleNamespace(main=lambda: made.append(registry["qwen_image"](config)))
    runners = "lightx2v.models.runners.qwen_image.qwen_image_runner"
    for name, values in (
        ("lightx2v", {"infer": infer}),
        (runners, {"QwenImageRunner": QwenImageRunner}),
        ("lightx2v.utils.registry_factory", {"RUNNER_REGISTER": registry}),
    ):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**values))
    monkeypatch.setattr(lightx2v, "load_model", lambda _source: ort_engines.tiny())
    exec(compile(body, page.name, "exec"), {})
    (runner,) = made
    size = SimpleNamespace(auto_width=96, auto_height=64)
    assert runner.vae.decode(torch.zeros(1, 24, 64), size)[0].size == (96, 64)


# --- two languages ------------------------------------------------------------------------------


def test_both_languages_have_the_same_pages():
    assert [path.name for path in CHINESE] == PAIRS
    nav = text_of(ROOT / "mkdocs.yml")
    for page in (*ENGLISH, *CHINESE):
        assert page.relative_to(ROOT / "docs").as_posix() in nav


@pytest.mark.parametrize("name", PAIRS)
def test_both_languages_say_the_same(name):
    one, other = (ROOT / "docs" / language / name for language in ("en", "zh"))
    assert _FENCE.findall(text_of(one)) == _FENCE.findall(text_of(other)), "code blocks"
    assert headings(one) == headings(other), "levels of headings"
    for what, pattern in (
        ("sizes", _SIZE),
        ("blocks of figures", _BLOCK),
        ("figures", _MARKED),
        ("tests", _TEST),
    ):
        found = [Counter(pattern.findall(text_of(page))) for page in (one, other)]
        if what == "figures":  # in words where they are missing
            found = [Counter(key for key, _ in counter.elements()) for counter in found]
        assert found[0] == found[1], what
    assert set(spans(one)) == set(spans(other)), "code in lines"
    assert numbers(one) == numbers(other), "numbers"
    assert links(one) == links(other), "links"


def headings(page: Path) -> list[int]:
    return [len(marks) for marks in re.findall(r"^(#+) ", _FENCE.sub("", text_of(page)), re.M)]


def numbers(page: Path) -> Counter[str]:
    """Every number in a page's words, code aside."""
    words = re.sub(r"`[^`\n]+`|\]\([^)]*\)", "", prose(page))
    return Counter(re.findall(r"\d+(?:\.\d+)*", words))


def links(page: Path) -> Counter[str]:
    found = [target.partition("#")[0] for target in _LINK.findall(text_of(page))]
    return Counter(re.sub(r"^\.\./(en|zh)/", "../", target) for target in found)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page):
    for target in _LINK.findall(text_of(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.is_file(), target
        assert there.is_relative_to(ROOT), target
        if page not in AT_THE_ROOT:
            assert there.is_relative_to(ROOT / "docs"), f"{target}: mkdocs does not carry it"
        if anchor:
            slugs = {
                re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
                for title in re.findall(r"^#+ (.+)$", text_of(there), re.M)
            }
            assert anchor in slugs, target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pictures_for_desk_and_phone_are_there(page):
    """In HTML, which neither the test above nor mkdocs looks into."""
    shown = re.findall(r'<picture>.*?srcset="([^"]+)".*? src="([^"]+)"', text_of(page))
    assert len(shown) == text_of(page).count("<picture>")
    for narrow, wide in shown:
        assert narrow == wide.replace(".svg", "-narrow.svg")
        assert (page.parent / narrow).is_file(), narrow
        assert (page.parent / wide).is_file(), wide


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_line_begins_with_a_figure(page):
    """A comment at the start of a line begins a block of HTML and tears the paragraph apart."""
    assert re.findall(r"^ *<!-- f .*", text_of(page), re.MULTILINE) == []


# --- figures ------------------------------------------------------------------------------------


def test_figures_are_those_of_the_measurements():
    script = ROOT / "tools" / "write_figures.py"
    ran = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, f"{ran.stdout}{ran.stderr}\npython tools/write_figures.py"


@lru_cache(maxsize=1)
def write_figures() -> Any:
    sys.path.insert(0, str(ROOT / "tools"))
    import write_figures as module

    return module


def test_figures_come_from_files_and_say_where_there_are_none(tmp_path):
    script = write_figures()
    text = (
        "a <!-- f range:decoder:static -->typed<!-- /f --> b"
        " <!-- f json:h100/soak.json:calls:int --><!-- /f -->\n\n"
        "<!-- block latency:encoder -->\nold\n<!-- /block -->\n<!-- block picture:speedup -->\n"
        "<!-- /block -->\n<!-- block memory -->\n<!-- /block -->\n<!-- block modes -->\n"
        "<!-- /block -->\n"
    )
    page = tmp_path / "docs" / "page.md"
    empty = script.filled(text, page, script.Measured(tmp_path))
    assert "typed" not in empty
    assert empty.count("not measured yet") == 5
    assert empty.count("have not been measured yet.") == 1
    chinese = script.filled(text, tmp_path / "zh" / "page.md", script.Measured(tmp_path))
    assert chinese.count("尚未测量") == 6

    folder = tmp_path / "h100"
    save(bench_samples.result(service=True), folder / "a" / "latency.json")
    (folder / "soak.json").write_text('{"calls": 2000}')
    pair = {"1328x1328": [12.5, 40.0]}
    row = {"case": "all static pairs", "engine_bytes": 2**30, "scratch_bytes": 2**29}
    row |= {"device_bytes": 2**31, "first_use_ms": pair, "switch_ms": {"1328x1328": [0.1, -0.2]}}
    (folder / "footprint.json").write_text(json.dumps({"model": "random:full", "rows": [row]}))
    full = script.filled(text, page, script.Measured(tmp_path))
    assert "a <!-- f range:decoder:static -->5.00×<!-- /f --> b" in full
    assert "2,000" in full
    assert "| 1328x1328 | 60.0 | 30.0 (2.00×) |" in full
    assert "h100-speedup.svg" in full
    assert "| all static pairs | 1.00 | 0.50 | 2.00 | 40 | 0.10 |" in full
    assert "Not measured yet: one static pair; nine profiles, 1024x1024; nine profiles, a" in full
    assert "| decode, mean speed-up | 5.00× |" in full
    assert "not measured yet" not in full
    assert script.filled(full, page, script.Measured(tmp_path)) == full


def test_a_figure_out_of_a_list(tmp_path):
    script = write_figures()
    (tmp_path / "rows.json").write_text('{"rows": [{"ms": [1.25, 2.5]}, {"name": "b", "ms": [4]}]}')
    measured = script.Measured(tmp_path)
    for path, said in (
        ("rows[0].ms[1]", "2.5 ms"),
        ("rows[name=b].ms[0]", "4.0 ms"),
        ("rows[2].ms[0]", "not measured yet"),
        ("rows[0].ms[2]", "not measured yet"),
    ):
        assert script.line(measured, f"json:rows.json:{path}:ms", "en") == said


def test_runs_of_one_machine_become_one_table_with_the_static_sizes_first(tmp_path):
    """As they come from a GPU: some sizes a file, torch.compile in a Python of its own."""
    script = write_figures()
    square, wide, other = map(Resolution.parse, ("1328x1328", "1664x928", "1216x832"))
    engines = ("pytorch", "folded", "static", "profiles")
    days = [f"2026-01-0{day}T00:00:00+00:00" for day in (1, 2, 3, 4)]
    made = {
        "old": bench_samples.result(paths=engines, sizes=(square,), scale=3, created=days[0]),
        "other": bench_samples.result(
            paths=("pytorch", "folded", "profiles"), sizes=(other,), created=days[1]
        ),
        "static": bench_samples.result(paths=engines, sizes=(square, wide), created=days[2]),
        "compiled": bench_samples.result(
            paths=("pytorch", "folded", "compiled"),
            sizes=(other, square),
            created=days[3],
            versions={"torch": "2.12.0"},
        ),
    }
    for name, result in made.items():
        save(result, tmp_path / "h100" / name / "latency.json")
    measured = script.Measured(tmp_path)

    def block(key: str) -> str:
        return script.block(measured, key, "en", tmp_path / "docs" / "page.md")

    rows = block("latency:decoder").splitlines()
    assert rows[0] == "| decoder, ms | pytorch | folded | compiled | static | profiles |"
    assert [row.split("|")[1].strip() for row in rows[2:]] == [
        "1664x928", "1328x1328", "*mean*", "1216x832",
    ]  # fmt: skip
    assert "| 1328x1328 | 100.0 | 50.0 (2.00×) | 25.0 (4.00×) | **20.0** (5.00×) |" in rows[3]
    assert rows[5].startswith("| 1216x832 | 100.0 | 50.0 (2.00×) | 25.0 (4.00×) | – |")
    gain = block("gain").splitlines()
    assert gain[0] == (
        "| path | encoder, static sizes (2) | decoder, static sizes (2) "
        "| encoder, 1216x832 | decoder, 1216x832 |"
    )
    assert "| `static` | 5.00× | 5.00× | – | – |" in gain
    assert "| torch | 2.11.0, 2.12.0 |" in block("machine")
    assert script.line(measured, "range:decoder:profiles", "en") == "4.50×"
    charts = script.charts(measured)
    assert set(charts) == {
        f"{name}{form}"
        for name in ("latency", "speedup", "memory", "latency-others")
        for form in ("", "-narrow")
    }
    assert "1216x832" in charts["latency-others"]
    assert "1216x832" not in charts["latency"]


def test_what_a_build_took_comes_from_the_latest_sidecar(tmp_path):
    script = write_figures()
    given = ROOT / "benchmarks" / "h200" / "static_1328" / "vae_decoder.trt.json"
    sidecar = json.loads(given.read_bytes())
    for name, seconds, day in (("a", 100.0, "2026-01-02"), ("b", 50.0, "2026-01-01")):
        folder = tmp_path / "h100" / name
        folder.mkdir(parents=True)
        held = json.dumps(sidecar | {"build_seconds": seconds, "created": day})
        (folder / "vae_decoder.trt.json").write_text(held)
    measured = script.Measured(tmp_path)
    assert [row["seconds"] for row in measured.builds] == [100.0]
    assert script.line(measured, "build:decoder:static", "en") == "100 s"
    assert script.line(measured, "build:decoder:profiles", "en") == "not measured yet"


def test_figures_of_one_cell_and_of_first_uses(tmp_path):
    script = write_figures()
    save(bench_samples.result(paths=("pytorch", "folded")), tmp_path / "h100" / "latency.json")
    milliseconds = {
        "first decoder 1024x1024": 1300.4,
        "new size, decoder 512x512": {"first_ms": 30.0, "warm_ms": 4.0, "cost_ms": 26.0},
        "new size, encoder 512x512": {"first_ms": 20.0, "warm_ms": 3.0, "cost_ms": 17.0},
        "decoder 272x272": {"eager_ms": 3.3, "graph_ms": 1.6},
        "after offload, decoder 1024x1024": 42.0,
    }
    (tmp_path / "h100" / "first_use_warm.json").write_text(
        json.dumps({"milliseconds": milliseconds})
    )
    busy = tmp_path / "h100" / "first_use_while_copying" / "first_use_warm.json"
    busy.parent.mkdir()
    slower = {"new size, decoder 512x512": {"cost_ms": 90.0}}
    busy.write_text(json.dumps({"milliseconds": slower}))
    measured = script.Measured(tmp_path)
    for key, said in (
        ("cell:decoder:folded:1328x1328:median", "50.0 ms"),
        ("cell:decoder:folded:1328x1328:first", "200 ms"),
        ("cell:decoder:folded:1328x1328:memory", "3.91 GiB"),
        ("cell:decoder:static:1328x1328:median", "not measured yet"),
        ("cell:decoder:folded:64x64:median", "not measured yet"),
        ("first:warm:process", "1,300 ms"),
        ("first:warm:size", "26 ms"),
        ("first:warm:offload", "42 ms"),
        ("first:cold:size", "not measured yet"),
        ("first:busy:size", "90 ms"),
        ("graph:decoder:272x272:graph", "1.6 ms"),
        ("graph:decoder:64x64:graph", "not measured yet"),
        ("share:folded:4", "not measured yet"),
    ):
        assert script.line(measured, key, "en") == said, key
    (tmp_path / "peers").mkdir()
    peer = {"size": "1328x1328", "text_encoding_ms": 50.0, "denoise_step_ms": 100.0}
    (tmp_path / "peers" / "sglang.json").write_text(json.dumps(peer))
    for key, said in (
        ("share:folded:4", "10.0%"),
        ("share:pytorch:9", "9.5%"),
        ("share:static:4", "not measured yet"),
    ):
        assert script.line(measured, key, "en") == said, key


def test_post_processing_is_of_one_path_size_and_run(tmp_path):
    script = write_figures()
    made = {("stock", 0): 50.0, ("qvae", 1): 3.0, ("stock", 1): 40.0}
    rows = tuple(
        ServiceRow(
            kind="latents_to_pil",
            path="static",
            resolution=Resolution.parse("1328x1328"),
            processor=processor,
            run=run,
            steps={"postprocess_ms": milliseconds},
        )
        for (processor, run), milliseconds in made.items()
    )
    one = bench_samples.result()
    table = replace(one, runs=one.runs * 2, service=rows)
    save(table, tmp_path / "h100" / "latency.json")
    measured = script.Measured(tmp_path)
    for key, said in (
        ("post:stock:static:1328x1328", "40.0 ms"),
        ("post:qvae:static:1328x1328", "3.0 ms"),
        ("post:stock:static:64x64", "not measured yet"),
        ("post:stock:folded:1328x1328", "not measured yet"),
    ):
        assert script.line(measured, key, "en") == said, key


def test_figures_of_two_machines_keep_apart(tmp_path):
    script = write_figures()
    square = (Resolution.parse("1328x1328"),)
    made = {"h100": ("pytorch", "folded"), "h200": ("pytorch", "static")}
    for host, paths in made.items():
        result = bench_samples.result(paths=paths, sizes=square, scale=1 + (host == "h200"))
        save(result, tmp_path / host / "latency.json")
    (tmp_path / "peers").mkdir()
    times = {part: {"pytorch_ms": 120.0, "tensorrt_ms": 60.0} for part in ("encoder", "decoder")}
    rows = [{"mode": "static", "size": size} | times for size in ("1328x1328", "768x1024")]
    (tmp_path / "peers" / "lightx2v.json").write_text(json.dumps({"rows": rows}))
    measured = script.Measured(tmp_path)
    assert script.line(measured, "range:decoder:static", "en") == "not measured yet"
    assert script.line(measured, "h200/range:decoder:static", "en") == "5.00×"

    def block(key: str) -> list[str]:
        return script.block(measured, key, "en", tmp_path / "page.md").splitlines()

    assert "static" not in block("latency:decoder")[0]
    assert "static" in block("h200/latency:decoder")[0]
    assert [row.split("|")[1].strip() for row in block("best")[2:]] == [
        "`pytorch`", "`folded`", "`static`",
    ]  # fmt: skip
    assert block("beside:decoder")[2:] == [
        "| 1328x1328 | static | 120.0 | 60.0 | 100.0 | – | 50.0 (`folded`) |",
        "| 768x1024 | static | 120.0 | 60.0 | – | – | – |",
    ]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_measurement_is_typed(page):
    words = re.sub(r"`[^`\n]+`", "", prose(page))
    pattern = r"\d[\d.,]*\s?(?:ms|GiB|GB|MiB|MB|dB|TFLOP|×|x faster|%|倍|毫秒)(?!\w)"
    assert re.findall(pattern, words) == []


# --- the page of Python names -------------------------------------------------------------------


@lru_cache(maxsize=1)
def write_api() -> Any:
    sys.path.insert(0, str(ROOT / "tools"))
    import write_api as module

    return module


def test_the_page_of_python_names_is_up_to_date():
    assert text_of(API) == write_api().api(), "make docs writes it anew"


def test_the_page_of_python_names_has_every_public_one():
    headings = re.findall(r"^### (\w+)$", text_of(API), re.MULTILINE)
    raised = re.findall(r"^\| `(\w+Error)` \|", text_of(API), re.MULTILINE)
    public = set(qvae_trt.__all__) - {"__version__"}
    assert {*headings, *raised} == public | set(write_api().RETURNED)


# --- words that the code really says ------------------------------------------------------------


@lru_cache(maxsize=1)
def _tests_there() -> set[tuple[str, str]]:
    found = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found.add((name_of(path), node.name))
    return found


def test_each_fault_names_its_test():
    """What the user's page promises, the contributor's page proves, row by row."""
    table, page = text_of(FAULTS).partition("## Long runs")[0], ROOT / "docs/en/reliability.md"
    proven = re.findall(r"^\| (.+) \| `.+?` \|$", table, re.MULTILINE)
    told = re.findall(r"^\| (.+?) \| .+? \| .+? \|$", text_of(page), re.MULTILINE)
    assert proven == [fault for fault in told if fault not in ("fault", "---")]
    named = _TEST.findall(table)
    assert len(named) == len(proven) >= 150
    assert set(named) <= _tests_there()


@lru_cache(maxsize=1)
def said() -> str:
    """Every text in the package, with … for what is filled in."""
    texts = []
    for path in (ROOT / "qvae_trt").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                pieces = [v.value if isinstance(v, ast.Constant) else "…" for v in node.values]
                texts.append(re.sub("…+", "…", "".join(map(str, pieces))))
    return "\0".join(texts)


def messages() -> list[str]:
    page = text_of(ROOT / "docs" / "en" / "troubleshooting.md")
    return re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE)


@pytest.mark.parametrize("message", messages())
def test_messages_are_the_codes_own(message):
    assert message.rstrip("…") in said()


def test_there_are_messages():
    assert len(messages()) >= 35


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_exceptions_named_are_public(page):
    for name in re.findall(r"`(\w+Error)`", text_of(page)):
        assert name in qvae_trt.__all__, name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_nobodys_own_folders(page):
    assert re.findall(r"(?<![\w.])/(?:work|home|root|Users|tmp|mnt)/", text_of(page)) == []


@pytest.mark.parametrize("picture", ["build", "match", "verify"])
def test_pictures_of_terminals_show_what_the_command_printed(picture):
    text = text_of(ROOT / "docs" / "images" / f"terminal-{picture}.svg")
    lines = {float(y) for y in re.findall(r'<text [^>]*y="([\d.]+)"', text)}
    assert len(lines) > 5


def words_of(svg: str) -> list[str]:
    """What a picture of a terminal says, without what differs from run to run: figures, and the
    rule under a head, which is longer where a figure is.
    """
    text = " ".join(html.unescape(line) for line in re.findall(r"<text [^>]*>(.*?)</text>", svg))
    text = re.sub("─+", "─", text)
    return re.sub(r"\d+(?:\.\d+)?(?:e[+-]\d+)?", "0", text.replace("\xa0", " ")).split()


@pytest.mark.parametrize("pictures", [["match"], pytest.param(["build", "verify"], marks=SLOW)])
def test_pictures_of_terminals_say_what_the_command_says_today(pictures, tmp_path):
    write_figures()
    from figures.pictures import terminal

    for name in pictures:
        held = text_of(ROOT / "docs" / "images" / f"terminal-{name}.svg")
        assert words_of(held) == words_of(terminal(name, tmp_path)), (
            "python tools/write_figures.py --terminal"
        )


def test_pictures_load_nothing():
    for picture in (ROOT / "docs" / "images").glob("*.svg"):
        text = picture.read_text("utf-8")
        assert "@font-face" not in text
        assert not re.search(r"(?:href|src)=[\"']https?:|url\(https?:", text), picture.name
