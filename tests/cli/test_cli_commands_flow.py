"""The main job through the command line, small: build, keep, prove, measure, pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import bench_samples
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from qvae_trt.bench import results
from qvae_trt.cli import app as cli

SIZE = "64x48"
TINY = ["--model", "bundled:tiny", "--backend", "onnxruntime"]
STATIC = ["build", "--mode", "static", "--resolution", SIZE, *TINY]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one engine pair; read only."""
    folder = tmp_path_factory.mktemp("flow") / "engines"
    assert cli.main([*STATIC, "--engine-dir", str(folder)]) == 0
    return folder


@pytest.fixture
def engines(built: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(built, tmp_path / "engines"))


@pytest.fixture
def photograph(root: Path, tmp_path: Path) -> Path:
    """60x41: no multiple of anything."""
    path = tmp_path / "photograph.png"
    with Image.open(root / "qvae_trt" / "data" / "pictures" / "astronaut.jpg") as picture:
        picture.crop((150, 20, 390, 184)).resize((60, 41)).save(path)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> dict:
    """The JSON result of a command."""
    capsys.readouterr()
    assert cli.main([*map(str, arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def states(result: dict) -> list[str]:
    return [engine["status"] for engine in result["engines"]]


def test_engines_and_sidecars_are_there(built: Path) -> None:
    names = {str(p.relative_to(built)) for p in built.rglob("*") if not p.name.startswith(".")}
    folder = f"static/{SIZE}"
    assert names == {
        "static",
        folder,
        *(
            f"{folder}/vae_{part}.onnx{end}"
            for part in ("encoder", "decoder")
            for end in ("", ".json")
        ),
    }
    sidecar = json.loads((built / folder / "vae_decoder.onnx.json").read_text())
    assert sidecar["command"].startswith("qvae build --mode static --resolution 64x48")
    assert sidecar["key"]["flavour"] == "onnxruntime"
    assert sidecar["input"]["shape"] == [1, 16, 1, 6, 8]
    assert sidecar["output"]["shape"] == [1, 3, 1, 48, 64]


def test_what_is_up_to_date_is_kept(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in built.rglob("*.onnx")}
    result = run(capsys, *STATIC, "--engine-dir", built)
    assert states(result) == ["kept", "kept"]
    assert {engine["reason"] for engine in result["engines"]} == {"up to date"}
    assert {p: p.stat().st_mtime_ns for p in built.rglob("*.onnx")} == before


def test_a_dry_run_builds_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(
        capsys, "build", "--mode", "profiles", *TINY, "--dry-run", "--engine-dir", tmp_path / "e"
    )
    assert states(result) == ["planned", "planned"]
    assert all(len(engine["profiles"]) == 9 for engine in result["engines"])
    assert not (tmp_path / "e").exists()


def test_force_and_stale_engines_are_built_again(
    engines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decoder = engines / "static" / SIZE / "vae_decoder.onnx"
    decoder.write_bytes(decoder.read_bytes()[:-7])
    planned = run(capsys, *STATIC, "--engine-dir", engines, "--dry-run")
    assert states(planned) == ["kept", "planned"]
    assert "cut short" in planned["engines"][1]["reason"]
    forced = run(capsys, *STATIC, "--engine-dir", engines, "--dry-run", "--force")
    assert states(forced) == ["planned", "planned"]
    assert cli.main([*STATIC, "--engine-dir", str(engines)]) == 0
    assert "decoder" in capsys.readouterr().out
    assert states(run(capsys, *STATIC, "--engine-dir", engines)) == ["kept", "kept"]


def test_inspect(built: Path, engines: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = Path("static") / SIZE / "vae_encoder.onnx"
    data = run(capsys, "inspect", built / file)
    assert data["sidecar"]["key"]["part"] == "encoder"
    assert data["engine"]["input"]["shape"] == [1, 3, 1, 48, 64]
    assert data["engine"]["operations"]["Conv"] > 0
    assert cli.main(["inspect", str(built / file)]) == 0
    assert "weights_sha256" in capsys.readouterr().out
    (engines / file).with_name("vae_encoder.onnx.json").unlink()
    assert cli.main(["inspect", str(engines / file)]) == 0
    shown = capsys.readouterr()
    assert "warning: " in shown.err
    assert "Conv" in shown.out


def test_match_takes_the_engine_that_is_there(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = run(capsys, "profiles", "match", SIZE, "--engine-dir", built, "--backend", "onnxruntime")
    assert data["encoder"]["engine"] == data["decoder"]["engine"] == "static"
    assert data["decoder"]["path"] == str(built / "static" / SIZE / "vae_decoder.onnx")
    data = run(capsys, "profiles", "match", "64x64", "--engine-dir", built)
    assert data["decoder"]["engine"] == "folded"


def test_verify(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    data = run(capsys, "verify", *TINY, "--engine-dir", built, "--out", out)
    assert data["ok"] is True
    assert data["counts"]["passed"] == len(data["rows"]) > 0
    assert json.loads((out / "parity.json").read_text())["ok"] is True
    assert "All bounds kept" in (out / "parity.md").read_text()


def test_verify_fails_where_nothing_is_proved(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["verify", *TINY, "--engine-dir", str(built), "--resolution", "512x512"]
    assert cli.main(arguments) == 1
    assert "error: " in capsys.readouterr().err


def test_bench_report_and_compare(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench"
    arguments = [
        "bench", "--resolution", SIZE, *TINY, "--engine-dir", built, "--out", out,
        "--baseline", "pytorch", "--baseline", "folded", "--budget", "0.05", "--device", "cpu",
    ]  # fmt: skip
    data = run(capsys, *arguments)
    assert data["schema"] == "qvae/latency"
    names = {"latency.md", "latency.json", "latency.csv", "latency.svg"}
    assert names <= {path.name for path in out.iterdir()}
    assert json.loads((out / "latency.json").read_text()) == data

    page = tmp_path / "report.html"
    assert run(capsys, "report", out / "latency.json", "--out", page)["path"] == str(page)
    assert page.read_text().startswith("<!")

    # Against a result that is a thousand times slower, and one that is a thousand times faster.
    for factor, code in ((1000, 0), (0.001, 1)):
        old = tmp_path / f"old{factor}.json"
        old.write_text(json.dumps(scaled(data, factor)))
        capsys.readouterr()
        assert cli.main([*map(str, arguments), "--compare", str(old), "--json"]) == code
        shown = capsys.readouterr()
        assert json.loads(shown.out)["comparison"]["ok"] is (code == 0)
        assert "an earlier result was there, and is now" in shown.err
        said = "none of 6 medians is worse" if code == 0 else "6 of 6 medians are worse"
        assert f"{said} by more than 5 %" in shown.err
    assert json.loads((out / "latency-1.json").read_text()) == data, "none was overwritten"


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        (["--resolution", "1664x928", "--margin", "-3"], 2, "the margin is -3.0, expected 0 to 10"),
        (["--resolution", "1664x928", "--margin", "nan"], 2, "the margin is nan, expected 0 to 10"),
        (["--resolution", "1664x928", "--baseline", "jax"], 2, "unknown baseline 'jax'"),
        (["--resolution", "64x64"], 1, "the old result has encoder and decoder at 1664x928"),
    ],
)
def test_what_cannot_be_compared_is_said_before_the_bench(
    given: list[str],
    code: int,
    words: str,
    built: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results.save(bench_samples.result(sizes=(bench_samples.WIDE,)), tmp_path / "old.json")
    monkeypatch.setattr("qvae_trt.bench.run.bench", lambda *_, **__: pytest.fail("it was measured"))
    command = ["bench", *given, *TINY, "--engine-dir", str(built)]
    assert cli.main([*command, "--compare", str(tmp_path / "old.json")]) == code
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (["--engine-dir", "engnies"], 1),
        (["--engine-dir", "engnies", "--baseline", "folded"], 0),
        ([], 0),
    ],
)
def test_a_bench_says_that_there_is_no_engine_folder(
    given: list[str],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """PyTorch alone is measured where that may be meant; a mistyped folder is no such wish."""
    monkeypatch.chdir(tmp_path)
    command = ["bench", "--resolution", SIZE, *TINY, "--budget", "0.01", "--device", "cpu"]
    assert cli.main([*command, "--part", "decoder", *given]) == code
    shown = capsys.readouterr().err
    folder, named = (given[1], [*given[:2]]) if given else ("engines", [])
    assert f"{folder}: no such folder\nqvae {' '.join([*STATIC, *named])}\n" in shown
    assert shown.startswith("error: " if code else "warning: engines are not measured: ")
    assert Path("out/bench/latency.json").exists() is (code == 0)


def scaled(value: object, factor: float) -> object:
    """The same result with every median multiplied."""
    if isinstance(value, dict):
        return {
            key: item * factor
            if key in {"median_ms", "p10_ms", "p90_ms", "min_ms"} and item is not None
            else scaled(item, factor)
            for key, item in value.items()
        }
    return [scaled(item, factor) for item in value] if isinstance(value, list) else value


# --- pictures ------------------------------------------------------------------------------------


def test_encode_then_decode_is_roundtrip(
    built: Path, photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [*TINY, "--engine-dir", built]
    latents, decoded, again = (tmp_path / n for n in ("l.safetensors", "d.png", "r.png"))
    done = run(capsys, "encode", photograph, *where, "--out", latents)
    assert done["size"] == "60x41"
    assert [(p["part"], p["engine"], p["size"]) for p in done["passes"]] == [
        ("encoder", "static", SIZE)
    ]
    with safe_open(latents, framework="np") as file:
        assert file.get_tensor("latents").shape == (1, 16, 1, 6, 8)
    done = run(capsys, "decode", latents, *where, "--out", decoded)
    assert [p["engine"] for p in done["passes"]] == ["static"]
    done = run(capsys, "roundtrip", photograph, *where, "--out", again)
    assert [p["engine"] for p in done["passes"]] == ["static", "static"]
    with Image.open(decoded) as left, Image.open(again) as right, Image.open(photograph) as given:
        assert left.size == right.size == given.size
        first, second, source = (np.asarray(p.convert("RGB"), float) for p in (left, right, given))
    assert np.array_equal(first, second)
    psnr = -10 * np.log10(((second - source) ** 2).mean() / 255**2)
    assert psnr > 15, "the photograph is not recognisable"
    assert done["psnr_db"] == pytest.approx(psnr, abs=0.01)


def test_side_by_side(
    built: Path, photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "both.png"
    where = [*TINY, "--engine-dir", built]
    run(capsys, "roundtrip", photograph, *where, "--out", out, "--side-by-side")
    with Image.open(out) as both, Image.open(photograph) as given:
        assert both.size == (120, 41)
        assert both.crop((0, 0, 60, 41)).tobytes() == given.convert("RGB").tobytes()


def test_without_engines_the_folded_network_serves_and_says_so(
    photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.png"
    arguments = ["roundtrip", photograph, *TINY, "--engine-dir", tmp_path / "none", "--out", out]
    assert cli.main([*map(str, arguments)]) == 0
    shown = capsys.readouterr()
    assert "folded" in shown.out
    assert "warning: " in shown.err
    assert "qvae build" in shown.err


def test_latents_of_another_model_are_told_of(
    built: Path, photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from qvae_trt.images import Latents, read_latents, write_latents

    latents = tmp_path / "l.safetensors"
    run(capsys, "encode", photograph, *TINY, "--engine-dir", built, "--out", latents)
    held = read_latents(latents)
    write_latents(latents, Latents(held.values, held.height, held.width, "mine", "0" * 64))
    out = tmp_path / "d.png"
    where = [*TINY, "--engine-dir", str(built)]
    assert cli.main(["decode", str(latents), *where, "--out", str(out)]) == 0
    assert "warning: " in (error := capsys.readouterr().err)
    assert "encoded with other weights (mine) than bundled:tiny" in error


@pytest.mark.parametrize("command", ["encode", "roundtrip"])
def test_an_extension_is_refused_before_the_work(
    command: str, photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.xyz"
    assert cli.main([command, str(photograph), *TINY, "--out", str(out)]) == 2
    assert "'.xyz'" in capsys.readouterr().err
    assert not out.exists()
