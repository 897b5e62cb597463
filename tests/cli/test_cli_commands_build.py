"""Estimates: how large an engine will be, and how long it takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_cases import drawn

from qvae_trt.build import JobResult, plan_profiles, plan_static
from qvae_trt.cli.commands import making
from qvae_trt.cli.commands.making import measured_like
from qvae_trt.profiles import Resolution, load_profiles


def measured(**changes: object) -> dict[str, object]:
    facts = {"flavour": "tensorrt", "flavour_version": "8.6.1", "gpu": "NVIDIA H200"}
    facts |= {"part": "decoder", "mode": "static", "size": "1328x1328"}
    return {**facts, "seconds": 180.0, "bytes": 60 * 2**20, **changes}


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (
        measured(),
        measured(size="512x512", seconds=60.0),
        measured(mode="profiles", size=None, seconds=900.0),
        measured(flavour="tensorrt_rtx", seconds=9.0),
    )
    monkeypatch.setattr(making, "measured", lambda: rows)


@pytest.mark.parametrize(
    ("flavour", "size", "seconds"),
    [
        ("tensorrt", "1664x928", 180.0),
        ("tensorrt", "640x480", 60.0),
        ("tensorrt_rtx", "640x480", 9.0),
        ("onnxruntime", "640x480", None),
    ],
)
def test_the_nearest_that_was_measured(
    known: None, flavour: str, size: str, seconds: float | None
) -> None:
    (encoder, decoder) = plan_static(Path("engines"), [Resolution.parse(size)])
    assert measured_like(encoder, flavour) is None
    found = measured_like(decoder, flavour)
    assert (None if found is None else found["seconds"]) == seconds


def test_profiles_are_not_judged_by_static_engines(known: None) -> None:
    (_, decoder) = plan_profiles(Path("engines"), load_profiles())
    found = measured_like(decoder, "tensorrt")
    assert found is not None
    assert found["seconds"] == 900.0


def test_a_dry_run_says_about_how_long_and_on_what(known: None) -> None:
    jobs = plan_static(Path("engines"), [Resolution.parse(s) for s in ("1664x928", "640x480")])
    results = [JobResult(job, "planned", "not built yet") for job in jobs]
    text = "\n".join(drawn(making.draw({"engines": making.plain(results, "tensorrt")}), 80))
    assert "~180.0" in text
    assert "~60.0" in text
    assert "NVIDIA H200 with tensorrt 8.6.1" in text
    assert "~ 4 min and 120 MiB in all" in text


def test_what_was_built_here_is_no_estimate(known: None) -> None:
    (job,) = plan_static(Path("engines"), [Resolution.parse("1664x928")], ("decoder",))
    results = [JobResult(job, "planned", "stale", seconds=12.0, engine_bytes=2**20)]
    assert "~" not in "\n".join(
        drawn(making.draw({"engines": making.plain(results, "tensorrt")}), 80)
    )


def test_the_file_of_what_was_measured_is_read() -> None:
    assert all(row["seconds"] > 0 and row["bytes"] > 0 for row in making.measured())
    assert {row["part"] for row in making.measured()} <= {"encoder", "decoder"}
