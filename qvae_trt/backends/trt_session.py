"""A TensorRT engine on the GPU, with execution contexts that own no scratch memory; and
TensorRT's log messages, which become part of the exceptions that they explain.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from qvae_trt.backends.protocol import ALIGNMENT_BYTES, check_shape, describe
from qvae_trt.errors import DeviceMemoryError, EngineError, ExecutionError, QvaeError
from qvae_trt.tensors import DTypeName, ShapeRange, TensorSpec

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
    """Errors and warnings that TensorRT logged while listening, each once, in order."""

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


#: TensorRT's name of each float type -> ours.
DTYPE_NAMES: dict[str, DTypeName] = {"HALF": "float16", "BF16": "bfloat16", "FLOAT": "float32"}


def _read_tensors(trt: Any, engine: Any) -> tuple[TensorSpec, TensorSpec]:
    """The engine's input and output. EngineError unless there is one of each, of a float type."""
    sources: list[TensorSpec] = []
    results: list[TensorSpec] = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        kind = engine.get_tensor_dtype(name).name
        if kind not in DTYPE_NAMES:
            raise EngineError(f"tensor {name} is {kind}: expected a float type")
        way = sources if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else results
        way.append(TensorSpec(name, DTYPE_NAMES[kind], tuple(engine.get_tensor_shape(name))))
    if len(sources) != 1 or len(results) != 1:
        raise EngineError(
            f"{len(sources)} inputs and {len(results)} outputs in the engine: expected one of each",
            fix="engines that qvae build makes have one of each",
        )
    return sources[0], results[0]


def _read_ranges(engine: Any, tensor: TensorSpec) -> tuple[ShapeRange, ...]:
    """The input's shapes, profile by profile."""
    count = engine.num_optimization_profiles
    if -1 not in tensor.shape:
        return (ShapeRange.fixed(tensor.shape),) * max(1, count)
    return tuple(
        ShapeRange(*(tuple(dims) for dims in engine.get_tensor_profile_shape(tensor.name, index)))
        for index in range(count)
    )


def _scratch_of_engine(engine: Any) -> int:
    """Scratch bytes for the engine's largest shape over all its profiles."""
    size = getattr(engine, "device_memory_size_v2", None)
    return int(engine.device_memory_size if size is None else size)


@dataclass(slots=True)
class _Context:
    """The execution context of one profile, and how its last run has left it.

    Attributes:
        shape: of the input; `()` where none is set.
        needed_bytes: of scratch, for that shape.
        scratch: address and bytes that it was handed.
    """

    handle: Any
    shape: tuple[int, ...] = ()
    needed_bytes: int = 0
    scratch: tuple[int, int] | None = None


class TensorRTSession:
    """`backends.Session` on a CUDA device. One thread at a time.

    Each profile in use has an execution context of its own: to set another profile, and then the
    shape, in one that has run takes milliseconds each time. None of them owns scratch memory.
    """

    device_type: Literal["cuda", "cpu"] = "cuda"
    capturable = True

    def __init__(self, trt: Any, log: Log, runtime: Any, engine: Any) -> None:
        self._trt, self._log = trt, log
        self._runtime, self._engine = runtime, engine  # the context is valid only as long as these
        self.input, self.output = _read_tensors(trt, engine)
        self.ranges = _read_ranges(engine, self.input)
        self._contexts: dict[int, _Context] = {}  # by profile
        self._selected = _Context(self._create_context(EngineError))

    def _create_context(self, fault: type[EngineError | ExecutionError]) -> Any:
        strategy = getattr(self._trt, "ExecutionContextAllocationStrategy", None)
        with self._log.listen() as heard:
            if strategy is None:  # 8.6
                context = self._engine.create_execution_context_without_device_memory()
            else:
                context = self._engine.create_execution_context(strategy.USER_MANAGED)
        if context is None:
            raise heard.explain(fault, "TensorRT made no execution context")
        # Engines keep the details of their layers for `qvae inspect`; a marker for each of them at
        # every run would cost time.
        context.nvtx_verbosity = self._trt.ProfilingVerbosity.NONE
        return context

    def select(self, shape: tuple[int, ...], profile: int, stream: int = 0) -> int:
        """Takes the context of a profile, and sets the input's shape in it unless it has that one.

        Returns: scratch bytes, of exactly this shape from TensorRT 10 on; on 8.6, which cannot say,
            the engine's largest.
        Raises: EngineError (no such profile, shape outside it), ExecutionError, DeviceMemoryError.
        """
        selected = self._contexts.get(profile)
        if selected is None or selected.shape != shape:
            check_shape(self, shape, profile)
            selected = selected or self._context_of(profile, stream)
            self._set_shape(selected, shape)
        self._selected = selected
        return selected.needed_bytes

    def _context_of(self, profile: int, stream: int) -> _Context:
        """A context for a profile that has none; the first is the one that was made at loading."""
        context = self._selected
        if self._contexts:
            context = _Context(self._create_context(ExecutionError))
        handle = context.handle
        with self._log.listen() as heard:
            if handle.active_optimization_profile != profile and (
                not handle.set_optimization_profile_async(profile, stream)
            ):
                raise heard.explain(ExecutionError, f"TensorRT refused profile {profile}")
        self._contexts[profile] = context
        return context

    def _set_shape(self, context: _Context, shape: tuple[int, ...]) -> None:
        context.shape, context.scratch = (), None
        with self._log.listen() as heard:
            if not context.handle.set_input_shape(self.input.name, shape):
                raise heard.explain(ExecutionError, f"TensorRT refused the shape {list(shape)}")
            update = getattr(context.handle, "update_device_memory_size_for_shapes", None)
            most = _scratch_of_engine(self._engine)
            needed = most if update is None else int(update())
        # 0 is what TensorRT answers where it fails.
        if needed < 0 or heard.errors or (needed == 0 and most > 0):
            raise heard.explain(
                ExecutionError, f"TensorRT does not say how much scratch {list(shape)} takes"
            )
        context.needed_bytes, context.shape = needed, shape

    def output_shape(self) -> tuple[int, ...]:
        """The output's shape for the selected input. EngineError where TensorRT cannot tell."""
        shape = tuple(self._selected.handle.get_tensor_shape(self.output.name))
        if not shape or min(shape) <= 0:
            raise EngineError(
                f"{self.output.name} has shape {list(shape)} for input"
                f" {list(self._selected.shape)}: expected positive sides"
            )
        return shape

    def execute(
        self, *, input_ptr: int, output_ptr: int, scratch_ptr: int, scratch_bytes: int, stream: int
    ) -> None:
        """Enqueues one run on `stream`. All memory stays in use until the stream has passed it.

        Raises: EngineError (too little or unaligned scratch), ExecutionError, DeviceMemoryError.
        """
        context, handle = self._selected, self._selected.handle
        if scratch_bytes < context.needed_bytes or scratch_ptr % ALIGNMENT_BYTES:
            raise EngineError(
                f"scratch of {scratch_bytes} bytes at {scratch_ptr:#x}: expected "
                f"{context.needed_bytes} bytes, aligned to {ALIGNMENT_BYTES}"
            )
        with self._log.listen() as heard:
            if context.needed_bytes and context.scratch != (scratch_ptr, scratch_bytes):
                hand_over = getattr(handle, "set_device_memory", None)
                if hand_over is not None:
                    hand_over(scratch_ptr, scratch_bytes)
                else:  # 8.6, and 10 before 10.1
                    handle.device_memory = scratch_ptr
                if heard.errors:  # neither returns anything; the run would use what it had before
                    raise heard.explain(ExecutionError, "TensorRT refused its scratch memory")
                context.scratch = (scratch_ptr, scratch_bytes)
            for tensor, pointer in ((self.input, input_ptr), (self.output, output_ptr)):
                if not handle.set_tensor_address(tensor.name, pointer):
                    context.scratch = None
                    raise heard.explain(
                        ExecutionError, f"TensorRT refused the address of {tensor.name}"
                    )
            done = handle.execute_async_v3(stream)
        if not done or heard.errors:
            context.scratch = None
            raise heard.explain(
                ExecutionError, f"the engine failed on {self.input.name} {list(context.shape)}"
            )

    def inspect(self) -> dict[str, object]:
        """Tensors, profiles, memory and layers."""
        plan = self._engine
        text = plan.create_engine_inspector().get_engine_information(
            self._trt.LayerInformationFormat.JSON
        )
        # 8.6 leaves control characters in it.
        layers = json.loads(text, strict=False).get("Layers", []) if text else []
        return {
            **describe(self),
            "scratch_bytes": _scratch_of_engine(plan),
            "profile_scratch_bytes": _scratch_of_profiles(plan, len(self.ranges)),
            "layers": layers,
        }

    def close(self) -> None:
        """Frees contexts, engine and their device memory, in that order."""
        self._contexts.clear()
        self._selected = _Context(None)
        self._engine = None
        self._runtime = None


def _scratch_of_profiles(plan: Any, count: int) -> list[int] | None:
    for name in ("get_device_memory_size_for_profile_v2", "get_device_memory_size_for_profile"):
        ask = getattr(plan, name, None)
        if ask is not None:
            return [int(ask(index)) for index in range(count)]
    return None  # 8.6 knows only the largest
