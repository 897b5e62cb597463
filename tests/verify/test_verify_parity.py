"""`verify` on real engines: what passes, what is not run, what is said."""

from __future__ import annotations

import dataclasses
import json

import ort_engines
import pytest
import torch
from store_cases import put_engine
from verify_cases import general
from verify_engines import SIZES, only, rewrite

from qvae_trt import backends, store
from qvae_trt.errors import (
    BackendError,
    DeviceMemoryError,
    EngineError,
    ExecutionError,
    ParityError,
)
from qvae_trt.model import BUNDLED_TINY
from qvae_trt.profiles import PARTS, Profile, Resolution, engine_path
from qvae_trt.progress import Event
from qvae_trt.runtime.engine import Engine
from qvae_trt.verify import verify
from qvae_trt.verify.reference import fast_bf16


def named(rows):
    return {(r.engine, str(r.resolution), r.input, r.output) for r in rows}


# --- what passes ----------------------------------------------------------------------------------


def test_fp16_engines_keep_every_bound(report):
    assert report.ok, report.to_markdown()
    report.require()
    assert {row.status for row in report.rows} == {"passed"}
    assert {row.mode for row in report.rows} == {"static", "profiles"}
    assert {row.input for row in report.rows} == {"photograph", "edges", "encoded", "sampled"}


def test_every_size_input_and_output_has_a_row(report):
    expected = {
        (engine, size, name, output)
        for part, names, outputs in (
            ("encoder", ("photograph", "edges"), ("mean", "logvar")),
            ("decoder", ("encoded", "sampled"), ("images",)),
        )
        for engine, sizes in (
            (f"static/96x64/vae_{part}.onnx", ("96x64",)),
            (f"profiles/vae_{part}_multi_profile.onnx", ("64x64", "80x48")),
        )
        for size in sizes
        for name in names
        for output in outputs
    } | {
        (f"profiles/vae_{part}_multi_profile.onnx", size, name, None)
        for part, name in (("encoder", "photograph"), ("decoder", "sampled"))
        for size in ("32x32", "160x128")
    }
    assert named(report.rows) == expected


@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [
        (ExecutionError("in a Reshape of attention"), "error", "Reshape of attention"),
        (DeviceMemoryError("no memory for 160x128"), "not run", "no memory"),
        (None, "broken", "NaN or infinity"),
    ],
)
def test_a_profile_that_fails_at_an_end_of_its_range_does_not_pass(
    engines, tmp_path, monkeypatch, fault, status, said
):
    real = Engine.run

    def run(self, x, *, profile=0):
        y = real(self, x, profile=profile)
        if tuple(x.shape[3:]) != (16, 20):
            return y
        if fault is not None:
            raise fault
        return y * float("nan")

    monkeypatch.setattr(Engine, "run", run)
    report = verify(only(engines, tmp_path, "profiles"), model=BUNDLED_TINY)
    (row,) = (row for row in report.rows if row.status != "passed")
    assert (str(row.resolution), row.profile, row.status) == ("160x128", 0, status)
    assert said in row.reason
    assert report.ok == (status == "not run")
    assert said in report.to_markdown()


def test_the_yardstick_is_measured_in_the_same_run(report):
    for row in report.rows:
        if row.output is None:
            continue
        found = row.comparison
        assert 1e-3 < found.yardstick.relative_l2 < 0.05, row
        assert found.metrics.relative_l2 <= found.yardstick.relative_l2
        assert found.bf16_ratio == pytest.approx(
            found.metrics.relative_l2 / found.yardstick.relative_l2
        )
        assert row.reference == "diffusers"
        assert row.yardstick == ("diffusers" if fast_bf16() else "folded")
    assert (report.proof is None) == fast_bf16()


def test_fp32_engines_keep_the_tighter_bounds(tmp_path_factory):
    report = verify(ort_engines.shared(tmp_path_factory), model=BUNDLED_TINY, resolutions=SIZES[:1])
    assert report.ok, report.to_markdown()
    assert {row.precision for row in report.rows} == {"fp32"}
    assert all(row.comparison.bf16_ratio < 1e-3 for row in report.rows)


def test_only_the_sizes_asked_for_are_run(engines):
    seen: list[Event] = []
    sizes = [Resolution(64, 96), Resolution(48, 112)]
    report = verify(engines, model=BUNDLED_TINY, resolutions=sizes, on_event=seen.append)
    assert report.ok
    assert {(row.mode, str(row.resolution)) for row in report.rows} == {
        ("static", "96x64"),
        ("profiles", "96x64"),
        ("profiles", "112x48"),
    }
    assert [event.index for event in seen] == list(range(len(seen)))
    assert {event.count for event in seen} == {len(seen)}


def test_what_was_left_out_is_said(report):
    some = dataclasses.replace(report, notes=("2 of 9 opts checked",))
    assert some.notes[0] in some.to_markdown()
    assert some.to_dict()["notes"] == list(some.notes)


def test_nothing_reaches_stdout(engines, capsys):
    verify(engines, model=BUNDLED_TINY, resolutions=[Resolution(64, 64)])
    assert capsys.readouterr().out == ""


def test_facts_name_every_version(report):
    facts = report.to_dict()["facts"]
    assert facts["onnxruntime"] == backends.get("onnxruntime").version()
    assert facts["torch"] == torch.__version__.split("+")[0] or facts["torch"] == torch.__version__
    assert {"polygraphy", "diffusers", "qvae", "platform", "weights"} <= set(facts)
    json.dumps(report.to_dict(), allow_nan=False)


# --- what is not run, and what is wrong -----------------------------------------------------------


def test_an_empty_folder_is_an_error(tmp_path):
    sizes = [Resolution(64, 96)]
    with pytest.raises(EngineError, match="no engines") as caught:
        verify(tmp_path, model=BUNDLED_TINY, backend="onnxruntime", resolutions=sizes)
    assert caught.value.fix == (
        "qvae build --mode static --resolution 96x64 "
        f"--model {BUNDLED_TINY} --backend onnxruntime --engine-dir {tmp_path}"
    )


def test_a_size_that_no_engine_holds_is_an_error(engines):
    report = verify(
        engines, model=BUNDLED_TINY, resolutions=[Resolution(64, 96), Resolution(512, 512)]
    )
    (row,) = (row for row in report.rows if row.status != "passed")
    assert (row.status, row.reason) == ("error", "no engine holds 512x512")
    assert not report.ok
    with pytest.raises(ParityError, match=r"^no engine holds 512x512") as caught:
        report.require()
    assert caught.value.fix == (
        "qvae build --mode static --resolution 512x512 "
        f"--model {BUNDLED_TINY} --engine-dir {engines}"
    )
    asked = dataclasses.replace(report, backend="onnxruntime")
    with pytest.raises(ParityError) as caught:
        asked.require()
    assert f"--backend onnxruntime --engine-dir {engines}" in caught.value.fix


def test_engines_of_another_backend_are_not_run(engines):
    report = verify(engines, model=BUNDLED_TINY, backend="tensorrt_rtx")
    assert {row.status for row in report.rows} == {"not run"}
    assert {row.reason for row in report.rows} == {"built by onnxruntime, asked for tensorrt_rtx"}
    with pytest.raises(ParityError, match="no engine could be run here") as caught:
        report.require()
    assert caught.value.fix == (
        f"for engines that run on CPUs: qvae build --mode static --model {BUNDLED_TINY} "
        f"--backend onnxruntime --engine-dir {engines}"
    )


def test_a_refusal_is_one_line_with_single_colons(engines, tmp_path):
    folder = only(engines, tmp_path, "static")
    path = engine_path(folder, "decoder", "static", ".onnx", SIZES[0])
    sidecar = store.read_sidecar(path)
    other = dataclasses.replace(sidecar.key, weights_sha256="0" * 64)
    put_engine(path, dataclasses.replace(sidecar, key=other), path.read_bytes())
    report = verify(folder, model=BUNDLED_TINY, resolutions=[SIZES[0]])
    (row,) = (row for row in report.rows if row.status == "error")
    assert "not the engine asked for: built from other weights" in row.reason
    assert "qvae build" not in row.reason
    assert row.fix == general(folder, precision="fp16")


def test_a_backend_that_cannot_run_here_is_not_run_and_never_passed(engines, tmp_path, monkeypatch):
    folder = only(engines, tmp_path, "static")
    moved = engine_path(folder, "decoder", "static", ".trt", SIZES[0])
    found = engine_path(folder, "decoder", "static", ".onnx", SIZES[0])
    sidecar = store.read_sidecar(found)
    key = dataclasses.replace(sidecar.key, flavour="tensorrt")
    put_engine(moved, dataclasses.replace(sidecar, key=key), found.read_bytes())
    found.unlink()
    real = backends.for_engine

    def for_engine(path, sidecar=None):
        if path.suffix == ".trt":
            raise BackendError("tensorrt is not installed", fix="pip install tensorrt")
        return real(path, sidecar)

    monkeypatch.setattr(backends, "for_engine", for_engine)
    report = verify(folder, model=BUNDLED_TINY)
    statuses = {(row.part, row.status) for row in report.rows}
    assert statuses == {("encoder", "passed"), ("decoder", "not run")}
    (row,) = (row for row in report.rows if row.status == "not run")
    assert (row.reason, row.flavour) == ("tensorrt is not installed", "tensorrt")
    assert row.resolution == SIZES[0]
    assert report.ok


def test_a_precision_that_the_backend_lacks_is_not_run(engines, tmp_path):
    folder = only(engines, tmp_path, "static")
    for part in PARTS:
        path = engine_path(folder, part, "static", ".onnx", SIZES[0])
        rewrite(path, key={"precision": "bf16"})
    report = verify(folder, model=BUNDLED_TINY)
    assert {row.status for row in report.rows} == {"not run"}
    assert all("bf16" in row.reason for row in report.rows)
    assert not report.ok


def test_an_engine_without_a_sidecar_is_not_loaded(engines, tmp_path):
    folder = only(engines, tmp_path, "static")
    path = engine_path(folder, "decoder", "static", ".onnx", SIZES[0])
    store.sidecar_path(path).unlink()
    report = verify(folder, model=BUNDLED_TINY)
    assert {(row.part, row.status) for row in report.rows} == {
        ("encoder", "passed"),
        ("decoder", "not run"),
    }


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("flipped byte", "changed since it was built"),
        ("truncated", "cut short"),
        ("other weights", "built from other weights"),
        ("other part", "the other half of the VAE: found encoder, expected decoder"),
        ("other mode", "built in another mode: found profiles, expected static"),
        ("other size", "built for other sizes: found 64x64, expected 96x64"),
        ("malformed", "sidecar"),
    ],
)
def test_a_bad_engine_is_an_error_and_the_others_still_run(engines, tmp_path, fault, said):
    folder = only(engines, tmp_path, "static")
    path = engine_path(folder, "decoder", "static", ".onnx", SIZES[0])
    data = bytearray(path.read_bytes())
    if fault == "flipped byte":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif fault == "truncated":
        path.write_bytes(data[:-100])
    elif fault == "other weights":
        rewrite(path, key={"weights_sha256": "0" * 64})
    elif fault == "other part":
        rewrite(path, key={"part": "encoder"})
    elif fault == "other mode":
        rewrite(path, key={"mode": "profiles"})
    elif fault == "other size":
        rewrite(path, key={"profiles": (Profile.fixed(Resolution(64, 64)),)})
    else:
        store.sidecar_path(path).write_text("{")
    report = verify(folder, model=BUNDLED_TINY)
    assert {(row.part, row.status) for row in report.rows} == {
        ("encoder", "passed"),
        ("decoder", "error"),
    }
    (row,) = (row for row in report.rows if row.status == "error")
    assert said in row.reason
    assert not report.ok
    # What did not run differs from nothing.
    with pytest.raises(ParityError, match=r"^of 5 rows, 1 could not be checked, the first: ") as e:
        report.require()
    known = {} if fault == "malformed" else {"precision": "fp16"}
    assert e.value.fix == general(folder, **known)


def test_broken_and_unchecked_are_counted_apart(report):
    broken, unchecked, *rest = report.rows
    rows = (
        dataclasses.replace(broken, status="broken", reason="psnr_db is 3", fix="qvae build a"),
        dataclasses.replace(unchecked, status="error", reason="no file", fix="qvae build b"),
        *rest,
    )
    with pytest.raises(ParityError) as caught:
        dataclasses.replace(report, rows=rows).require()
    assert caught.value.what == (
        f"of {len(rows)} rows, 1 broken, 1 could not be checked, the first: "
        f"{broken.engine}: psnr_db is 3"
    )
    assert caught.value.fix == "qvae build a\nqvae build b"


def test_an_engine_that_fails_while_running_is_an_error(engines, monkeypatch):
    real = Engine.run

    def run(self, x, *, profile=0):
        if self.part == "decoder":
            raise ExecutionError(f"{self.path}: failed")
        return real(self, x, profile=profile)

    monkeypatch.setattr(Engine, "run", run)
    report = verify(engines, model=BUNDLED_TINY, resolutions=[Resolution(64, 96)])
    statuses = {(row.part, row.status) for row in report.rows}
    assert statuses == {("encoder", "passed"), ("decoder", "error")}
    assert not report.ok
