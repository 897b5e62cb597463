"""The report: what is ok, and how it is written."""

from __future__ import annotations

import json
import math
from typing import get_args

import pytest
from verify_cases import FP16, check, noise, row

from qvae_trt.cli.output import to_json
from qvae_trt.errors import ParityError
from qvae_trt.profiles import Precision
from qvae_trt.verify import VerifyReport
from qvae_trt.verify.bounds import BoundCheck
from qvae_trt.verify.reference import Proof
from qvae_trt.verify.report import HEADINGS, explain


@pytest.mark.parametrize(
    ("statuses", "ok"),
    [
        (["passed"], True),
        (["passed", "not run"], True),
        (["not run"], False),
        ([], False),
        (["passed", "broken"], False),
        (["passed", "error"], False),
    ],
)
def test_ok_needs_something_that_ran_and_nothing_broken(statuses, ok):
    report = VerifyReport(
        rows=tuple(row(s, reason="because", fix="qvae build") for s in statuses), facts={}
    )
    assert report.ok is ok
    if ok:
        report.require()
    else:
        with pytest.raises(ParityError) as caught:
            report.require()
        assert caught.value.fix


def test_the_report_is_json_even_where_numbers_are_not(image):
    engine = image.copy()
    engine[0, 0, 0, 0, 0] = math.nan
    rows = (row("broken", check(image, engine), "x"), row("passed", check(image, image.copy())))
    report = VerifyReport(rows=rows, facts={"torch": "2"}, proof=Proof(1e-6, 1.0))
    text = to_json(report.to_dict())
    first, second = json.loads(text)["rows"]
    assert first["relative_l2"] is None
    assert first["nans"] == 1
    assert second["psnr_db"] is None
    assert second["max_abs"] == 0.0
    assert second["verdicts"][0] == {"metric": "finite", "value": 0.0, "bound": 0.0, "passed": True}
    assert json.loads(text)["bounds"]["fp16"]["images"]["bf16_ratio"] == FP16["images"].bf16_ratio


def test_markdown_has_every_row_and_every_bound(image):
    rows = (
        row("passed", check(image, image + noise(image, 1e-3))),
        row("not run", reason="no GPU"),
    )
    report = VerifyReport(rows=rows, facts={"torch": "2"}, proof=Proof(1e-6, 1.0))
    text = report.to_markdown()
    assert "not run: no GPU" in text
    assert "96x64" in text
    for precision in get_args(Precision):
        assert text.count(f"| {precision} |") == 3
    assert {len(row.cells()) for row in rows} == {len(HEADINGS)}


@pytest.mark.parametrize(
    ("metric", "value", "bound", "said"),
    [
        ("cosine", 0.99996113, 0.99997, "cosine is 0.99996, expected at least 0.99997"),
        (
            "relative_l2",
            0.0075000004,
            0.0075,
            "relative_l2 is 0.0075000004, expected at most 0.0075",
        ),
        ("psnr_db", 54.741, 55, "psnr_db is 54.74, expected at least 55"),
        ("max_abs", math.nan, 0.04, "max_abs is nan, expected at most 0.04"),
    ],
)
def test_a_value_past_its_bound_is_not_rounded_to_it(metric, value, bound, said):
    assert explain([BoundCheck(metric, value, bound, passed=False)]) == said
