"""`latency.json`: what is written is what is read, and is what the schema says."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from bench_samples import SQUARE, WIDE, result, run, timing
from hypothesis import given
from hypothesis import strategies as st

import qvae_trt
from qvae_trt.bench import compare, results
from qvae_trt.bench.results import Cell, Timing
from qvae_trt.errors import BenchError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "integer": (int,),
    "number": (int, float),
}


def faults(value: Any, rule: dict[str, Any], root: dict[str, Any], at: str = "$") -> Iterator[str]:
    """What in `value` breaks the schema `rule`; knows the keywords that ours uses, no others."""
    known = {"$schema", "title", "description", "$defs", "$ref", "type", "enum", "const", "pattern"}
    known |= {"required", "properties", "additionalProperties", "items", "minItems", "minimum"}
    known |= {"exclusiveMinimum", "anyOf"}
    assert set(rule) <= known, f"{at}: keyword not checked here: {set(rule) - known}"
    if "$ref" in rule:
        yield from faults(value, root["$defs"][rule["$ref"].removeprefix("#/$defs/")], root, at)
    if "anyOf" in rule and all(list(faults(value, one, root, at)) for one in rule["anyOf"]):
        yield f"{at}: fits none of anyOf"
    if "const" in rule and value != rule["const"]:
        yield f"{at}: not {rule['const']!r}"
    if "enum" in rule and value not in rule["enum"]:
        yield f"{at}: not in {rule['enum']}"
    if "type" in rule:
        names = [rule["type"]] if isinstance(rule["type"], str) else rule["type"]
        kinds = tuple(kind for name in names for kind in _TYPES[name])
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            yield f"{at}: {type(value).__name__}, not {names}"
            return
    if isinstance(value, str) and not re.search(rule.get("pattern", ""), value):
        yield f"{at}: does not match"
    if isinstance(value, int | float) and not isinstance(value, bool):
        if value < rule.get("minimum", value):
            yield f"{at}: too small"
        if "exclusiveMinimum" in rule and value <= rule["exclusiveMinimum"]:
            yield f"{at}: too small"
    if isinstance(value, list):
        if len(value) < rule.get("minItems", 0):
            yield f"{at}: too few"
        for index, item in enumerate(value):
            yield from faults(item, rule.get("items", {}), root, f"{at}[{index}]")
    if isinstance(value, dict):
        properties = rule.get("properties", {})
        yield from (f"{at}: no {name}" for name in rule.get("required", ()) if name not in value)
        for name, item in value.items():
            other = rule.get("additionalProperties", True)
            if name in properties:
                yield from faults(item, properties[name], root, f"{at}.{name}")
            elif other is False:
                yield f"{at}: {name} is unknown"
            elif isinstance(other, dict):
                yield from faults(item, other, root, f"{at}.{name}")


@pytest.fixture(scope="module")
def schema(root: Path) -> dict[str, Any]:
    path = root / "qvae_trt" / "data" / "latency.schema.json"
    return dict(json.loads(path.read_text("utf-8")))


def full() -> results.BenchResult:
    """Every kind of row, a merge with a tie among them."""
    engines = result(paths=("pytorch", "folded", "static"), absent=("compiled",), service=True)
    return compare.merge([engines, result(scale=1.02, paths=("pytorch", "compiled"))])


def test_the_schema_is_kept_and_bites(schema: dict[str, Any]) -> None:
    value = json.loads(json.dumps(full().to_dict()))
    assert list(faults(value, schema, schema)) == []
    assert value["ties"] and value["service"] and value["floors"]

    def broken(change: Any) -> list[str]:
        other = copy.deepcopy(value)
        change(other)
        return list(faults(other, schema, schema))

    assert broken(lambda v: v.update(version=2))
    assert broken(lambda v: v["cells"][0].pop("timing"))
    assert broken(lambda v: v["cells"][0]["timing"].update(median_ms=0))
    assert broken(lambda v: v["cells"][0].update(resolution="1664*928"))
    assert broken(lambda v: v["cells"][0].update(invented=1))
    assert broken(lambda v: v["runs"].clear())
    assert broken(lambda v: v["service"][0]["steps"].update(decode_ms="fast"))


def test_an_earlier_result_keeps_its_content_under_another_name(tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    assert results.set_aside(path) is None
    for number in (1, 2):
        path.write_text(str(number))
        assert results.set_aside(path) == tmp_path / f"latency-{number}.json"
    assert not path.exists()
    assert (tmp_path / "latency-1.json").read_text() == "1"


def test_written_and_read_again(tmp_path: Path) -> None:
    before = full()
    path = tmp_path / "deep" / "latency.json"
    results.save(before, path)
    assert results.load(path) == before
    assert results.load(path.parent) == before, "a folder stands for the latency.json in it"
    assert [entry.name for entry in path.parent.iterdir()] == ["latency.json"]


def read(value: object, folder: Path) -> results.BenchResult:
    """What `load` makes of this as JSON."""
    path = folder / "latency.json"
    path.write_text(json.dumps(value))
    return results.load(path)


def test_derived_values_are_not_believed_but_worked_out(tmp_path: Path) -> None:
    value = result().to_dict()
    for cell in value["cells"]:
        cell["speedup"] = 99.0
    loaded = read(value, tmp_path)
    cell = loaded.cell("decoder", SQUARE, "static")
    assert cell is not None
    assert loaded.speedup(cell) == pytest.approx(5.0)
    assert loaded.floor_share(cell) == pytest.approx(0.5)


def test_speedup_needs_pytorch_of_the_same_run() -> None:
    lonely = result(paths=("static",))
    cell = lonely.cell("decoder", SQUARE, "static")
    assert cell is not None
    assert lonely.speedup(cell) is None
    assert lonely.mean_speedup("decoder", "static") is None
    assert result().mean_speedup("decoder", "static") == (pytest.approx(5.0), 2)


def test_means_are_over_the_sizes_that_all_paths_have() -> None:
    """A path that is slow at one size looks better without it."""
    both = result(paths=("pytorch", "folded", "static"))
    slow = replace(both.cells[0], timing=timing(100.0))
    cells = [
        replace(slow, part=cell.part, path=cell.path, resolution=cell.resolution)
        if (cell.path, cell.resolution) == ("folded", SQUARE)
        else cell
        for cell in both.cells
        if cell.part == "decoder"
    ]
    whole = replace(both, cells=tuple(cells))
    assert whole.mean_speedup("decoder", "folded") == (pytest.approx(1.5), 2)
    assert whole.mean_speedup("decoder", "static") == (pytest.approx(5.0), 2)
    partial = [c for c in cells if (c.path, c.resolution) != ("static", SQUARE)]
    less = replace(both, cells=tuple(partial))
    assert less.mean_speedup("decoder", "folded") == (pytest.approx(2.0), 1)
    assert less.mean_speedup("decoder", "static") == (pytest.approx(5.0), 1)
    apart = [c for c in partial if (c.path, c.resolution) != ("folded", WIDE)]
    assert replace(both, cells=tuple(apart)).mean_speedup("decoder", "static") is None


def test_fastest_needs_a_rival() -> None:
    assert result().fastest("encoder", WIDE) == "static"
    assert result(paths=("static",)).fastest("encoder", WIDE) is None


@given(st.lists(st.floats(0.001, 1e5), min_size=1, max_size=60))
def test_percentiles_are_numpys(samples: list[float]) -> None:
    timing = Timing.of(samples)
    expected = np.quantile(samples, [0.1, 0.5, 0.9])
    assert [timing.p10_ms, timing.median_ms, timing.p90_ms] == pytest.approx(list(expected))
    assert timing.min_ms == min(samples)
    assert timing.runs == len(samples)


def _drop(value: dict[str, Any], *path: str | int) -> None:
    for key in path[:-1]:
        value = value[key]
    del value[path[-1]]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda v: v.update(schema="something"), "no bench result"),
        (lambda v: v.update(version=2), "version 2"),
        (lambda v: v.update(runs=[]), "at least one run"),
        (lambda v: _drop(v, "cells", 3, "path"), r"cells\[3\]\.path: missing"),
        (lambda v: v["cells"][0].update(part="middle"), r"cells\[0\]\.part: expected one of"),
        (lambda v: v["cells"][0].update(resolution="1001x7"), "1001"),
        (lambda v: v["cells"][0].update(run=7), "run 7"),
        (lambda v: v["cells"][0].update(run=True), r"cells\[0\]\.run: expected a whole number"),
        (lambda v: v["cells"][0].update(timing=[]), "timing"),
        (lambda v: v["cells"][0]["timing"].update(median_ms=0), "more than 0"),
        (
            lambda v: v["cells"][0]["timing"].update(p10_ms=float("nan")),
            "NaN is not a JSON number",
        ),
        (lambda v: v["cells"].append(v["cells"][0]), "more than once"),
        (lambda v: v["service"][0].update(steps={"decode_ms": "x"}), "decode_ms"),
        (lambda v: v["runs"][0].update(machine={"gpu": {"name": 1}}), "gpu"),
        (lambda v: v["runs"][0].update(versions={"torch": 2}), "torch"),
        (
            lambda v: v["runs"][0]["matmul"].update(tflops="fast"),
            'matmul.tflops: expected a number, found "fast"',
        ),
        (
            lambda v: v["runs"][0].update(notes=[1]),
            r"runs\[0\]\.notes\[0\]: expected text, found 1",
        ),
        (lambda v: v["runs"][0].update(model="\ud800"), r"runs\[0\]\.model: expected text"),
        (
            lambda v: v["cells"][0]["timing"].update(min_ms=10**400),
            "min_ms: expected 2.1684e-19 to 4.61169e\\+18, found 1000",
        ),
        (
            lambda v: v["cells"][0]["detail"].update(engine_bytes=10**400),
            "engine_bytes: expected -4",
        ),
    ],
)
def test_a_wrong_file_is_refused_and_the_place_named(
    change: Any, named: str, tmp_path: Path
) -> None:
    value = json.loads(json.dumps(result(service=True).to_dict()))
    change(value)
    with pytest.raises(BenchError, match=named):
        read(value, tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"schema": 1}',
        b"[" * 200_000,
        b'{"schema": ' + b"1" * 5000 + b"}",
    ],
)
def test_a_file_that_is_no_result(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "latency.json"
    path.write_bytes(content)
    with pytest.raises(BenchError, match=r"latency\.json"):
        results.load(path)


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(BenchError) as caught:
        results.load(tmp_path / "none.json")
    assert "qvae bench" in str(caught.value)


def test_the_old_file_survives_a_failed_write(tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    results.save(result(), path)
    kept = path.read_bytes()
    bad = result(machine={"gpu": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        results.save(bad, path)
    assert path.read_bytes() == kept
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        results.save(result(), tmp_path / "file" / "latency.json")


def test_an_unknown_path_of_a_later_version_is_kept(tmp_path: Path) -> None:
    later = results.BenchResult(
        runs=(run(),), cells=(Cell(part="decoder", resolution=WIDE, path="quantum"),)
    )
    assert read(later.to_dict(), tmp_path).paths == ("quantum",)


def test_importing_the_bench_imports_no_torch(python: str) -> None:
    import subprocess

    code = "import sys, qvae_trt.bench, qvae_trt.report; print('torch' in sys.modules)"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert qvae_trt.__version__
