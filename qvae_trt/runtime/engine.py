"""One engine: its tensors, its turn on the device, its run, and how it is freed."""

from __future__ import annotations

import logging
import weakref
from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from qvae_trt import backends
from qvae_trt.errors import EngineError, ExecutionError
from qvae_trt.kinds import scale_of
from qvae_trt.opening import ANY, Opened, Wanted, open_engine
from qvae_trt.profiles import Part, Profile, Resolution
from qvae_trt.runtime.graphs import CapturedRun, captures
from qvae_trt.runtime.memory import Scratch, aligned, memory_named, on, shared_scratch
from qvae_trt.store import EngineFile

_LOG = logging.getLogger(__name__)


class Engine:
    """An engine that is loaded, and knows how to run on PyTorch's current stream.

    Attributes:
        path: its file.
        files: the `signature` of what was loaded; another one by now says that it was replaced.
        sidecar: what it was built from and for; None for a foreign engine.
        device: where it runs.
        bytes: size of its file, which is about what its weights take on the device.
        captured: a caller's CUDA graph holds its addresses, so that it must not be closed.
        wants_graph: captures a CUDA graph of its own, and replays it.
        held: what it holds on the device, with that graph.
    """

    def __init__(
        self, opened: Opened, *, device: torch.device | None = None, cuda_graph: bool = False
    ) -> None:
        session = self._session = opened.session
        self.path, self.files, self.sidecar = opened.path, opened.files, opened.sidecar
        self.input, self.output, self.ranges = session.input, session.output, session.ranges
        self.device = device or torch.empty(0, device=session.device_type).device
        self.bytes = self.path.stat().st_size
        self.captured = False
        self._scratch = shared_scratch(self.device)
        self.wants_graph = cuda_graph and self.device.type == "cuda" and session.capturable
        self.held = _Held(session, self.device, self._scratch)
        # Garbage is collected anywhere, also where a lock is held and while an engine is captured:
        # nothing is waited for there, and the next `free_dropped` frees it.
        self._finalizer = weakref.finalize(self, _dropped.append, self.held)
        self._finalizer.atexit = False  # nothing frees at exit what it would queue
        # The scratch buffer, profile and shape of the last run, None where it failed. Then how many
        # runs in a row had these and were not replays: in the first one TensorRT may do work that
        # cannot be captured, or change what a graph reads.
        self._last: tuple[int, int, tuple[int, ...]] | None = None
        self._alike = 0
        self._graph_fits = False
        self._profiles_run: set[int] = set()
        self._closed = False

    @classmethod
    def open(
        cls,
        engine: EngineFile | Path,
        wanted: Wanted = ANY,
        *,
        device: torch.device | None = None,
        cuda_graph: bool = False,
    ) -> Engine:
        """Check an engine file against its sidecar, and load it.

        Args:
            engine, wanted: see `opening.check`.
            device: the CUDA device to load on; without one, the current one.
            cuda_graph: capture the third of three runs in a row of one size, of a static engine the
                second, and replay it until another size comes.

        Raises:
            EngineError: missing, corrupt (StaleEngineError: built for something else;
                ForeignEngineError: no sidecar; DeviceMemoryError: does not fit).
            BackendError: what loads it is absent.
        """
        free_dropped()
        with on(device):  # GPUs of one machine may differ
            opened = open_engine(engine, wanted, loading=captures.none, warn=True)
        where = opened.session.device_type
        if device is not None and device.type != where:
            opened.session.close()
            raise EngineError(f"{opened.path}: runs on {where}, the tensors are on {device.type}")
        return cls(opened, device=device, cuda_graph=cuda_graph)

    @property
    def part(self) -> Part:
        """`encoder` shrinks its input, `decoder` grows it; an engine of unknown origin shows it
        that way too.
        """
        if self.sidecar is not None:
            return self.sidecar.key.part
        grows = self.input.shape[1] > self.output.shape[1]
        return "decoder" if grows else "encoder"

    @property
    def static(self) -> bool:
        """It takes exactly one shape."""
        return len(self.ranges) == 1 and self.ranges[0].is_fixed

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """The pictures that it takes, profile by profile."""
        if self.sidecar is not None:
            return self.sidecar.key.profiles
        scale = scale_of(self.input.shape[1]) if self.part == "decoder" else 1
        return tuple(
            Profile(*(Resolution(s[3] * scale, s[4] * scale) for s in (r.min, r.opt, r.max)))
            for r in self.ranges
        )

    def run(self, x: torch.Tensor, *, profile: int = 0) -> torch.Tensor:
        """Run on the current stream, without waiting for the result.

        Args:
            x: (1, C, 1, H, W) of any floating dtype, ready on the current stream.
            profile: which optimization profile.

        Returns:
            (1, C', 1, H', W') in the engine's output dtype, owned by the caller.

        Raises:
            EngineError: the shape is outside the engine's ranges, or the engine was closed.
            ExecutionError: the run failed. DeviceMemoryError: no memory for it.
        """
        room = memory_named(self.device, f"memory for input and output of {self.path.name}")
        with room, on(self.device):
            data = x.to(self.device, getattr(torch, self.input.dtype)).contiguous()
            stream = None
            if self.device.type == "cuda":
                stream = torch.cuda.current_stream(self.device)
                if torch.cuda.is_current_stream_capturing():
                    return self.enqueue_captured(data, profile, stream)
            free_dropped()
            if stream is not None and x.is_cuda:
                # The caller may drop it at once, and may have allocated it on another stream.
                x.record_stream(stream)
            return self.enqueue(data, profile, stream)

    def enqueue(
        self, x: torch.Tensor, profile: int, stream: torch.cuda.Stream | None
    ) -> torch.Tensor:
        """`run` of an input that is as the engine takes it, on a stream; None on the CPU."""
        handle = 0 if stream is None else stream.cuda_stream
        shape = tuple(x.shape)
        with self._scratch.turn(stream):
            last, self._last = self._last, None
            # The first run of a profile makes its execution context, as loading does.
            with nullcontext() if profile in self._profiles_run else captures.none():
                size = self._live().select(shape, profile, handle)
            pointer = self._scratch.reserve(size, stream)
            y = self._output()
            place = self._scratch.generation, profile, shape
            if place != last:
                self._alike = 0
            again = self.wants_graph and self._alike >= (1 if self.static else 2)
            if not (again and self._replay(x, y, pointer, size, handle)):
                x = x if stream is None else _aligned(x)
                self._graph_fits = False
                self._execute(pointer, size, x, y, handle)
                self._alike += 1
            self._last = place
            self._profiles_run.add(profile)
        return y

    def enqueue_captured(
        self, x: torch.Tensor, profile: int, stream: torch.cuda.Stream
    ) -> torch.Tensor:
        """Inside `torch.cuda.graph` of the caller: nothing may wait, and the addresses stay with
        the graph.
        """
        why = None
        if not self._session.capturable:
            why = "its backend waits for the stream"
        elif not self.static:
            why = "not a static engine"
        elif not self._profiles_run:
            why = "not run yet"
        if why is not None:
            raise ExecutionError(
                f"{self.path}: cannot be captured: {why}",
                fix="capture a static engine, after one ordinary run of it",
            )
        with self._scratch.turn(None):
            self._last = None  # its own graph is captured anew
            size = self._live().select(tuple(x.shape), profile, stream.cuda_stream)
            y = self._output()
            scratch = self._scratch.private(size)
            x = _aligned(x)
            self._execute(aligned(scratch), size, x, y, stream.cuda_stream)
            self.captured = True
        return y

    def _live(self) -> backends.Session:
        if self._closed:
            raise EngineError(f"{self.path}: closed")
        return self._session

    def _output(self) -> torch.Tensor:
        shape = self._session.output_shape()
        return torch.empty(shape, dtype=getattr(torch, self.output.dtype), device=self.device)

    def _execute(
        self, pointer: int, size: int, x: torch.Tensor, y: torch.Tensor, stream: int
    ) -> None:
        """Enqueue the run of x into y. The caller keeps both tensors until then."""
        others = {"scratch_ptr": pointer, "scratch_bytes": size, "stream": stream}
        self._session.execute(input_ptr=x.data_ptr(), output_ptr=y.data_ptr(), **others)

    def _replay(
        self, x: torch.Tensor, y: torch.Tensor, pointer: int, size: int, stream: int
    ) -> bool:
        """Whether the engine's own graph ran. After a run that was no replay it is captured anew;
        one that CUDA refuses is not tried again.
        """
        held = self.held
        try:
            if not self._graph_fits:
                if held.graph is not None:
                    held.free_graph()
                execute = partial(self._execute, pointer, size)
                held.graph = CapturedRun.capture(execute, x=x, y=y)
                self._graph_fits = held.graph is not None
            if held.graph is not None:
                held.graph.replay(x, y, stream)
        except (RuntimeError, EngineError) as error:
            _LOG.warning("%s: runs without a CUDA graph: %s", self.path, error)
            # A graph that failed is freed by `close`, which waits: part of it may have run.
            self.wants_graph = False
            return False
        return held.graph is not None

    def close(self) -> None:
        """Wait for its last run and free it; closing twice does nothing."""
        if self._closed:
            return
        self._closed = True
        self._finalizer.detach()
        self.held.free()
        free_dropped()


def _aligned(x: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy of it at an aligned address: a slice may begin anywhere."""
    return x if x.data_ptr() % backends.ALIGNMENT_BYTES == 0 else x.clone()


@dataclass(slots=True)
class _Held:
    """What an engine holds on the device, freed once the device is done with it, also where the
    engine was dropped and not closed.
    """

    session: backends.Session
    device: torch.device
    scratch: Scratch
    graph: CapturedRun | None = None

    def free(self) -> None:
        """Wait for the last run, and free everything."""
        try:
            self.free_graph()
        finally:
            # The thread's device may be another. No lock is held here that a capture waits for.
            with on(self.device), captures.none():
                self.session.close()

    def free_graph(self) -> None:
        """Wait for the last run, and free the graph: its tensors may be in use on another stream
        than the one they go back to.
        """
        self.scratch.drain()
        graph, self.graph = self.graph, None
        if graph is not None:
            with on(self.device):
                graph.close()


_dropped: deque[_Held] = deque()


def free_dropped() -> None:
    """Free the device memory of engines that were dropped without being closed."""
    while _dropped:
        try:
            held = _dropped.popleft()
        except IndexError:  # another thread was faster
            return
        try:
            held.free()
        except RuntimeError as error:  # of CUDA: not the caller's, whose own engine may be well
            _LOG.warning("what a dropped engine held was not freed: %s", error)
