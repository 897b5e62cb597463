"""The processes that help a build: one makes engines, the other the next engine's graph meanwhile.

Exporting needs a processor and building the GPU: one after the other, a quarter of the time that
several engines take would go into exporting.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, Self

from qvae_trt import backends
from qvae_trt.errors import QvaeError
from qvae_trt.files.writing import workplace
from qvae_trt.workers import Child, ChildError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from qvae_trt.backends import BuildOutcome, BuildSpec
    from qvae_trt.export import OnnxFile
    from qvae_trt.lowerings import Lowering
    from qvae_trt.model import Model
    from qvae_trt.profiles import Part, Precision, Resolution
    from qvae_trt.progress import Progress

_log = logging.getLogger(__name__)


def build_child() -> Child:
    """The process that builds engines. It imports neither torch nor the exporter."""
    fix = "qvae doctor; if it happens again, try a lower --level or a smaller size"
    return Child("build", makes="engine", fix=fix)


def build_there(
    backend: str, onnx: Path, out: Path, spec: BuildSpec, *, progress: Progress
) -> BuildOutcome:
    """What that process is asked for: `Backend.build`."""
    return backends.get(backend).build(onnx, out, spec, progress=progress)


class GraphSpec(NamedTuple):
    """What decides a graph, for one model: these arguments of `export_onnx`."""

    part: Part
    resolution: Resolution | None
    lowering: Lowering
    precision: Precision


class Graphs:
    """The graphs of one build.

    Args:
        model: whose.
        ahead: the next graph can be exported in another process. If that fails, it is exported when
            its engine is built.
    """

    def __init__(self, model: Model, *, ahead: bool) -> None:
        self._model, self.ahead = model, ahead
        self._child = Child("export", makes="graph", fix="qvae doctor")
        self._started: tuple[GraphSpec, ExitStack] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.close()
        if self._started is not None:
            self._started[1].close()

    def start(self, spec: GraphSpec) -> None:
        """Export this graph ahead, and go on."""
        with ExitStack() as place:
            try:
                out = place.enter_context(workplace()) / f"{spec.part}.onnx"
                self._child.ask(_export_there, self._model.source, spec, out)
            except QvaeError as error:
                _log.debug("no graph ahead: %s", error)
            else:
                self._started = spec, place.pop_all()

    @contextmanager
    def graph(self, spec: GraphSpec, progress: Progress) -> Iterator[OnnxFile]:
        """The graph, there until the block ends."""
        asked, place = self._started or (None, ExitStack())
        self._started = None  # the next one may be started inside the block
        with place:
            exported = self._finished(progress) if asked == spec else None
            if asked != spec:
                # No answer of it is for this one, and what it holds, the build may need.
                self._child.close()
            if exported is None:
                out = place.enter_context(workplace()) / f"{spec.part}.onnx"
                exported = _export(self._model, spec, out, progress)
            yield exported

    def _finished(self, progress: Progress) -> OnnxFile | None:
        try:
            exported: OnnxFile
            exported, weights_sha256 = self._child.answer(progress)
        except (QvaeError, ChildError) as error:  # it shows again when the graph is exported here
            _log.debug("no graph ahead: %s", error)
            return None
        if weights_sha256 != self._model.weights_sha256:
            _log.debug("the weights of %s have changed meanwhile", self._model.source)
            return None
        return exported


def _export(model: Model, spec: GraphSpec, out: Path, progress: Progress) -> OnnxFile:
    from qvae_trt.export import export_onnx

    return export_onnx(model, out=out, progress=progress, **spec._asdict())


def _export_there(
    source: str, spec: GraphSpec, out: Path, *, progress: Progress
) -> tuple[OnnxFile, str]:
    model = _model(source)
    return _export(model, spec, out, progress), model.weights_sha256


@cache
def _model(source: str) -> Model:
    from qvae_trt.model import load_model

    return load_model(source)
