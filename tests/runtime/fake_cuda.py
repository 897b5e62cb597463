"""The driver's part in CUDA graphs, without a GPU: what `backends.devices` asks of libcuda."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

#: Handles are addresses: past 32 bits.
CONTEXT, STREAM = 0x7F00_0000_1000, 0x7F00_0000_2000


def _given(argument: Any) -> Any:
    """What the C function would be given: a Python int is cut to 32 bits."""
    if hasattr(argument, "_obj"):
        return argument._obj  # byref
    return ctypes.c_int(argument).value if isinstance(argument, int) else argument.value


class FakeCuda:
    """Captures, graphs and contexts.

    Attributes:
        fails: names of functions, with the status that their next call returns.
        capturing: streams, with the work recorded on each.
        graphs, executables: alive, with their work.
        current: the thread's context.
        retained: ordinals of the devices whose primary context was retained.
        names: functions called, in order.
    """

    def __init__(self) -> None:
        self.fails: dict[str, int] = {}
        self.capturing: dict[int, list[Callable[[], None]]] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.executables: dict[int, list[Callable[[], None]]] = {}
        self.launches: list[tuple[int, int]] = []
        self.current: int | None = CONTEXT
        self.retained: list[int] = []
        self.names: list[str] = []
        self._next = 0x7F00_1000_0000

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("cu"):
            raise AttributeError(name)
        do = getattr(self, f"_{name[2:].lower()}")

        def call(*arguments: Any) -> int:
            self.names.append(name)
            if name in self.fails and name != "cuStreamEndCapture":
                return self.fails.pop(name)
            return do(*map(_given, arguments))

        return call

    def _handle(self) -> int:
        self._next += 0x1000
        return self._next

    def _geterrorname(self, status: int, text: Any) -> int:
        text.value = {901: b"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"}.get(status, b"CUDA_ERROR_X")
        return 0

    def _streamcreate(self, stream: Any, flags: int) -> int:
        stream.value = STREAM
        return 0

    def _ctxgetcurrent(self, context: Any) -> int:
        context.value = self.current
        return 0

    def _deviceget(self, device: Any, ordinal: int) -> int:
        device.value = 10 + ordinal
        return 0

    def _deviceprimaryctxretain(self, context: Any, device: int) -> int:
        self.retained.append(device - 10)
        context.value = CONTEXT + device
        return 0

    def _ctxsetcurrent(self, context: int) -> int:
        self.current = context
        return 0

    def _streambegincapture_v2(self, stream: int, mode: int) -> int:
        assert mode == 2, "relaxed: other threads allocate meanwhile"
        if stream in self.capturing:
            return 401
        self.capturing[stream] = []
        return 0

    def _streamendcapture(self, stream: int, graph: Any) -> int:
        """Where it fails it ends the capture nevertheless, without a graph."""
        work = self.capturing.pop(stream)
        status = self.fails.pop("cuStreamEndCapture", 0)
        if status == 0:
            graph.value = self._handle()
            self.graphs[graph.value] = work
        return status

    def _graphinstantiatewithflags(self, executable: Any, graph: int, flags: int) -> int:
        assert flags == 0
        executable.value = self._handle()
        self.executables[executable.value] = self.graphs[graph]
        return 0

    def _graphdestroy(self, graph: int) -> int:
        del self.graphs[graph]
        return 0

    def _graphlaunch(self, executable: int, stream: int | None) -> int:
        for work in self.executables[executable]:
            work()
        self.launches.append((executable, stream or 0))
        return 0

    def _graphexecdestroy(self, executable: int) -> int:
        del self.executables[executable]
        return 0
