"""TensorRT's own messages: heard through its logger, told in the exceptions they explain."""

from __future__ import annotations

import logging
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from qvae_trt.errors import DeviceMemoryError, QvaeError

if TYPE_CHECKING:
    from collections.abc import Iterator

_python_log = logging.getLogger(__name__)
_OUT_OF_MEMORY = re.compile(
    r"out ?of ?memory|MemoryAllocation|cuda(?: failure|error)?:? 2\b"
    r"|insufficient (?:gpu |device )?memory|requested amount of gpu memory",
    re.IGNORECASE,
)
_SHOWN, _SHOWN_CHARS = 6, 600
_Error = TypeVar("_Error", bound=QvaeError)


@dataclass
class Messages:
    """Errors and warnings heard while listening, each once, in order."""

    thread: int | None
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def out_of_memory(self) -> bool:
        return any(_OUT_OF_MEMORY.search(text) for text in self.errors + self.warnings)

    def explain(self, kind: type[_Error], what: str, *, fix: str | None = None) -> QvaeError:
        """`kind`, with TensorRT's last messages behind `what`; DeviceMemoryError where they speak
        of memory.
        """
        heard = [text[:_SHOWN_CHARS] for text in self.errors[-_SHOWN:]]
        text = what if not heard else f"{what}. TensorRT said: {' | '.join(heard)}"
        if self.out_of_memory and not issubclass(kind, DeviceMemoryError):
            return DeviceMemoryError(
                text, fix="free GPU memory (other processes, other engines), or take a smaller size"
            )
        return kind(text, fix=fix)


class Log:
    """The logger of one TensorRT module, made once: TensorRT keeps the first one that a process
    hands it.
    """

    def __init__(self, trt: Any) -> None:
        self._lock = threading.Lock()
        self._open: list[Messages] = []
        level = trt.ILogger.Severity
        errors, warning = (level.INTERNAL_ERROR, level.ERROR), level.WARNING
        hear = self._hear

        class Sink(trt.ILogger):
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                if severity in errors:
                    hear(msg, True)
                elif severity == warning:
                    hear(msg, False)

        self.sink = Sink()

    def _hear(self, text: str, is_error: bool) -> None:
        _python_log.debug("%s", text)
        me = threading.get_ident()
        with self._lock:
            for messages in self._open:
                if messages.thread in (None, me):
                    kept = messages.errors if is_error else messages.warnings
                    if text not in kept:
                        kept.append(text)

    @contextmanager
    def listen(self, *, all_threads: bool = False) -> Iterator[Messages]:
        """Collects messages of the calling thread, or of all: a builder speaks from threads of its
        own.
        """
        messages = Messages(None if all_threads else threading.get_ident())
        with self._lock:
            self._open.append(messages)
        try:
            yield messages
        finally:
            with self._lock:
                self._open.remove(messages)
