"""Engines built in another process, one by one. Imports neither torch nor the exporter."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvae_trt import backends
from qvae_trt.backends import BuildOutcome, BuildSpec
from qvae_trt.tensors import ShapeRange, TensorSpec
from qvae_trt.workers.child import answer
from qvae_trt.workers.parent import Child

if TYPE_CHECKING:
    from qvae_trt.progress import Progress


class BuildChild(Child):
    """The process that builds engines."""

    def __init__(self) -> None:
        super().__init__(
            "qvae_trt.build.builder:serve",
            name="build",
            makes="engine",
            fix="qvae doctor; if it happens again, try --level 2 or a smaller size",
        )

    def build(
        self, backend: str, onnx: Path, out: Path, spec: BuildSpec, *, progress: Progress
    ) -> BuildOutcome:
        """`Backend.build` there, with the same results and errors, and those of `call`."""
        request = {"backend": backend, "onnx": str(onnx), "out": str(out), "spec": asdict(spec)}
        held = self.call(request, progress=progress)
        source, result = (TensorSpec.of(held[way]) for way in ("input", "output"))
        return BuildOutcome(
            held["flags"], held["seconds"], source, result, warnings=tuple(held["warnings"])
        )


def serve(request: dict[str, Any]) -> None:
    """The body of that process: builds the engine that the request describes."""
    answer(request, _build)


def _build(request: dict[str, Any], progress: Progress) -> object:
    outcome = backends.get(request["backend"]).build(
        Path(request["onnx"]), Path(request["out"]), _spec(request["spec"]), progress=progress
    )
    return asdict(outcome)


def _spec(held: dict[str, Any]) -> BuildSpec:
    cache = held["timing_cache"]
    ranges = tuple(
        ShapeRange(tuple(r["min"]), tuple(r["opt"]), tuple(r["max"])) for r in held["ranges"]
    )
    return BuildSpec(
        **{**held, "ranges": ranges, "timing_cache": None if cache is None else Path(cache)}
    )
