"""The readers of files, under a fuzzer; `fuzz_readers.py` is the harness."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import bench_samples
import fuzz_readers
import pytest

from qvae_trt import report
from qvae_trt.bench import compare, results
from qvae_trt.errors import BenchError
from qvae_trt.runtime import lightx2v

HARNESS = Path(fuzz_readers.__file__)
needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="atheris is not installed: it has wheels for Python 3.11 to 3.13 on x86-64 Linux",
)


@pytest.fixture
def readers(tmp_path, monkeypatch):
    monkeypatch.setattr(lightx2v, "load_model", lightx2v.load_model)  # undoes what Readers does
    return fuzz_readers.Readers(tmp_path / "file")


def test_every_seed_is_a_file_that_its_reader_takes(readers, tmp_path):
    found = fuzz_readers.seeds(tmp_path)
    assert {reader for reader, _ in found} == set(range(len(fuzz_readers.READERS)))
    for reader, raw in found:
        assert readers.read(reader, raw), f"{fuzz_readers.READERS[reader]}: {raw!r}"


def test_what_the_fuzzer_has_found_is_refused(readers):
    config = {"vae_path": "weights", "trt_vae_config": {"trt_engine_path": "~no-such-user"}}
    assert not readers.read(4, json.dumps(config).encode())


def test_a_bench_result_with_an_odd_value_is_refused_or_shown(tmp_path):
    """Every member, one after the other, each with one of the odd values."""
    engines = bench_samples.result(paths=("pytorch", "static"), absent=("compiled",), service=True)
    other = bench_samples.result(scale=1.02, paths=("pytorch", "compiled"))
    whole = json.loads(json.dumps(compare.merge([engines, other]).to_dict()))
    path, taken, refused = tmp_path / "latency.json", 0, 0
    for index, (holder, name) in enumerate(list(members(whole))):
        kept, holder[name] = holder[name], fuzz_readers.ODD[index % len(fuzz_readers.ODD)]
        path.write_text(json.dumps(whole))
        holder[name] = kept
        try:
            found = results.load(path)
            report.write_tables(found, tmp_path / "out")
            assert results.load(tmp_path / "out") == found
            report.write_html([found], tmp_path / "out" / "report.html")
            taken += 1
        except BenchError as error:
            str(error).encode()  # as it is printed
            refused += 1
    assert min(taken, refused) > 20


def members(value):
    """Every member of every object and list, as (holder, name)."""
    names = value if isinstance(value, dict) else range(len(value))
    for name in names:
        yield value, name
        if isinstance(value[name], dict | list):
            yield from members(value[name])


def fuzz(out: Path, *options: str) -> dict:
    command = [sys.executable, HARNESS, "--out", out, *options]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-4000:]
    return json.loads(out.read_bytes())


@needs_atheris
@pytest.mark.parametrize(
    ("options", "least"),
    [
        (["-runs=2000", "-seed=1"], 100),
        pytest.param(["-max_total_time=600"], 10_000, marks=pytest.mark.slow, id="ten minutes"),
    ],
)
def test_no_file_gives_another_exception(tmp_path, options, least):
    found = fuzz(tmp_path / "fuzz.json", *options)
    assert found["findings"] == 0
    for name, row in found["readers"].items():
        assert row["inputs"] >= least, name
        assert row["accepted"], f"{name}: all refused, so little was read"


@needs_atheris
def test_a_finding_fails_the_run(tmp_path):
    """A harness that sees nothing would pass too: one whose reader is broken must not."""
    broken = tmp_path / "broken.py"
    broken.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(HARNESS.parent)!r})\n"
        "import fuzz_readers\n"
        "fuzz_readers.__file__ = __file__\n"
        "fuzz_readers.Readers.read_sidecar = lambda self, raw: {}[raw]\n"
        "sys.exit(fuzz_readers.main())\n"
    )
    out = tmp_path / "fuzz.json"
    command = [sys.executable, broken, "-runs=50", "--out", out]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stderr[-4000:]
    assert "KeyError" in ran.stdout
    assert json.loads(out.read_bytes())["findings"] == 1
