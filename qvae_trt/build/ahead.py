"""The next engine's graph, exported in another process while TensorRT builds an engine.

Exporting needs a processor and building the GPU: one after the other, a quarter of the time that
several engines take would go into exporting.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Self

from qvae_trt.errors import QvaeError
from qvae_trt.files.workplace import workplace
from qvae_trt.tensors import TensorSpec
from qvae_trt.workers.parent import Child, ChildError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from qvae_trt.export import OnnxFile
    from qvae_trt.lowerings import Lowering
    from qvae_trt.model import Model
    from qvae_trt.profiles import Part, Precision, Resolution
    from qvae_trt.progress import Progress

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What decides a graph, for one model and precision."""

    part: Part
    resolution: Resolution | None
    lowering: Lowering


class Ahead:
    """One graph ahead. What goes wrong here costs no engine: its graph is exported in time then."""

    def __init__(self, model: Model, precision: Precision) -> None:
        self._model, self._precision = model, precision
        self._child = Child(
            "qvae_trt.build.exporting:serve", name="export", makes="graph", fix="qvae doctor"
        )
        self._started: tuple[Wanted, Path, ExitStack] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.close()
        if self._started is not None:
            self._started[2].close()

    def start(self, wanted: Wanted) -> None:
        """Export this graph, and go on."""
        with ExitStack() as place:
            try:
                path = place.enter_context(workplace()) / f"{wanted.part}.onnx"
                self._child.ask(
                    {
                        "model": self._model.source,
                        "part": wanted.part,
                        "out": str(path),
                        "precision": self._precision,
                        "resolution": wanted.resolution and asdict(wanted.resolution),
                        "lowering": wanted.lowering.canonical(),
                    }
                )
            except QvaeError as error:
                _log.debug("no graph ahead: %s", error)
            else:
                self._started = wanted, path, place.pop_all()

    @contextmanager
    def graph(self, wanted: Wanted, progress: Progress) -> Iterator[OnnxFile | None]:
        """The graph, there until the block ends; None if it was not started or did not work."""
        asked, path, place = self._started or (None, None, ExitStack())
        self._started = None  # the next one may be started inside the block
        with place:
            if path is not None and asked == wanted:
                yield self._finished(path, progress)
            else:
                # No answer of it is for this one, and what it holds, the build may need.
                self._child.close()
                yield None

    def _finished(self, path: Path, progress: Progress) -> OnnxFile | None:
        from qvae_trt.export import OnnxFile

        try:
            answer = self._child.answer(progress)
        except (QvaeError, ChildError) as error:  # it shows again when the graph is exported here
            _log.debug("no graph ahead: %s", error)
            return None
        if answer["weights_sha256"] != self._model.weights_sha256:
            _log.debug("the weights of %s have changed meanwhile", self._model.source)
            return None
        source, result = (TensorSpec.of(answer[way]) for way in ("input", "output"))
        return OnnxFile(path, answer["sha256"], source, result)
