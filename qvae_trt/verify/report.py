"""Rows of a parity run, and how they are written: for people, as Markdown, as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from qvae_trt.commands import build_command
from qvae_trt.errors import ParityError
from qvae_trt.json_rows import write
from qvae_trt.profiles import Mode, Part, Resolution
from qvae_trt.report.templates import render
from qvae_trt.verify.bounds import AT_LEAST, BOUNDS, BoundCheck, Comparison
from qvae_trt.verify.reference import PROOF_SIZE, Proof, Source

SCHEMA_VERSION = 1
Status = Literal["passed", "broken", "error", "not run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityRow:
    """One output of one engine on one input, or the reason why there is none.

    Attributes:
        engine: the file, relative to the engine folder.
        profile: the optimization profile that ran; None for a static engine.
        input: which of the drawn inputs; output: `images`, `mean` or `logvar`.
        status: `passed`; `broken`: a bound does not hold; `error`: it should run here and did not;
            `not run`: this machine cannot run it, which proves nothing.
        reason: what is wrong; of a row that `passed`, why nothing was compared, if nothing was.
        fix: the command that mends a `broken` or an `error`, if one does.
        reference: whose fp32 result it was compared with; yardstick: whose bf16 result.
    """

    engine: str
    part: Part | None
    mode: Mode | None
    flavour: str | None = None
    precision: str | None = None
    resolution: Resolution | None = None
    profile: int | None = None
    input: str | None = None
    output: str | None = None
    status: Status
    reason: str = ""
    fix: str | None = None
    reference: Source | None = None
    yardstick: Source | None = None
    comparison: Comparison | None = None

    def to_dict(self) -> dict[str, object]:
        """Plain data. Numbers may be NaN or infinite, which `cli.output.to_json` writes as null."""
        row = write(self)
        compared = row.pop("comparison")
        if compared is not None:
            yardstick = compared.pop("yardstick")
            row |= compared.pop("metrics") | {"verdicts": compared.pop("checks")} | compared
            row |= {f"bf16_{name}": value for name, value in yardstick.items()}
        return row

    def cells(self) -> tuple[str, ...]:
        """The row of a table, under `HEADINGS`."""
        size = "–" if self.resolution is None else str(self.resolution)
        if self.profile is not None:
            size += f" [{self.profile}]"
        head = (self.engine, size, self.input or "–", self.output or "–")
        result: str = self.status
        if self.comparison is None or self.status != "passed":
            result += f": {self.reason}"
        if self.comparison is None:
            return (*head, *("–" for _ in _FIGURES), result)
        found, metrics = self.comparison, self.comparison.metrics
        psnr, cosine = f"{metrics.psnr_db:.1f}", f"{metrics.cosine:.7f}"
        differences = (f"{metrics.relative_l2:.1e}", f"{metrics.max_abs:.1e}")
        ratios = (f"{found.bf16_ratio:.2g}", f"{found.power:.0f}")
        return (*head, psnr, cosine, *differences, *ratios, result)


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """All rows of one run, and what they were made with; `backend` as it was asked for. `notes` say
    what was left out.
    """

    rows: tuple[ParityRow, ...]
    facts: dict[str, str]
    proof: Proof | None = None
    seconds: float = 0.0
    backend: str = "auto"
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[Status, int]:
        seen = Counter(row.status for row in self.rows)
        return {status: seen[status] for status in ("passed", "broken", "error", "not run")}

    @property
    def summary(self) -> str:
        """One line: how many rows passed, and how many did not."""
        return ", ".join(f"{n} {status}" for status, n in self.counts.items() if n) or "no engines"

    @property
    def ok(self) -> bool:
        """Something ran and nothing exceeds its tolerance. What cannot run here does not count."""
        counts = self.counts
        return counts["passed"] > 0 and counts["broken"] == 0 and counts["error"] == 0

    def require(self) -> None:
        """Raise unless `ok`.

        Raises:
            ParityError: an engine exceeds its tolerance, an engine failed, or nothing could be run.
        """
        if self.ok:
            return
        wrong = [row for row in self.rows if row.status in ("broken", "error")]
        if not wrong:
            reasons = sorted({row.reason for row in self.rows if row.status == "not run"})
            raise ParityError(
                "no engine could be run here: " + ("; ".join(reasons) or "there is none"),
                fix=f"for engines that run on CPUs: {self._hint((), backend='onnxruntime')}",
            )
        absent = [row.resolution for row in wrong if row.part is None and row.resolution]
        if len(absent) == len(wrong):
            raise ParityError(
                f"no engine holds {', '.join(map(str, absent))}",
                fix=self._hint(absent, backend=self.backend),
            )
        words: dict[Status, str] = {"broken": "broken", "error": "could not be checked"}
        counted = ", ".join(f"{self.counts[s]} {w}" for s, w in words.items() if self.counts[s])
        raise ParityError(
            f"of {len(self.rows)} rows, {counted}, the first: {wrong[0].engine}: {wrong[0].reason}",
            fix="\n".join(dict.fromkeys(row.fix for row in wrong if row.fix is not None)) or None,
        )

    def _hint(self, sizes: Sequence[Resolution], *, backend: str) -> str:
        model, folder = self.facts.get("model"), self.facts.get("engine folder")
        return build_command("static", *sizes, model=model, backend=backend, engine_dir=folder)

    def to_dict(self) -> dict[str, object]:
        """Plain data, with rows as they make it."""
        return {
            "schema_version": SCHEMA_VERSION,
            "ok": self.ok,
            "counts": self.counts,
            "seconds": round(self.seconds, 3),
            "facts": self.facts,
            "notes": list(self.notes),
            "reference_proof": self.proof and self.proof.to_dict(),
            "bounds": write(BOUNDS),
            "rows": [row.to_dict() for row in self.rows],
        }

    def to_markdown(self) -> str:
        """The table with its bounds and their reasons."""
        shown = {"headings": HEADINGS, "proof_size": PROOF_SIZE, "bounds": BOUNDS}
        return render("parity.md.jinja", report=self, **shown)


_FIGURES = ("PSNR dB", "cosine", "rel L2", "max abs", "vs bf16", "power")
HEADINGS = ("engine", "size", "input", "output", *_FIGURES, "result")


def explain(checks: Iterable[BoundCheck]) -> str:
    """The bounds that do not hold: `psnr_db is 31.2, expected at least 52`."""
    return "; ".join(
        f"{v.metric} is {_apart(v.value, v.bound)},"
        f" expected at {'least' if v.metric in AT_LEAST else 'most'} {v.bound:g}"
        for v in checks
        if not v.passed
    )


def _apart(value: float, bound: float) -> str:
    """With four digits, or as many as tell it from the bound: a cosine of 0.99996 is not "1"."""

    def side(number: float) -> int:
        return (number > bound) - (number < bound)

    texts = (f"{value:.{digits}g}" for digits in range(4, 17))
    return next((text for text in texts if side(float(text)) == side(value)), repr(value))
