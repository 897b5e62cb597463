"""The ladder: static engine → profiles engine → fused → folded → tiles, from top to bottom.

Which of the engines serves a size is chosen by `profiles.choose`, from what `runtime.engines` finds
in the folder.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from qvae_trt.commands import rebuild_command
from qvae_trt.errors import (
    BackendError,
    DeviceMemoryError,
    EngineError,
    ExecutionError,
    QvaeError,
    ResolutionError,
    UsageError,
    out_of_memory,
)
from qvae_trt.model import Model
from qvae_trt.profiles import MODES, Choice, Part, Refusal, Resolution, with_fused
from qvae_trt.runtime import memory
from qvae_trt.runtime.cache import Counts, Recent, bare
from qvae_trt.runtime.engines import Engines
from qvae_trt.runtime.fallback import FallbackMode, FiniteCheck, Notices
from qvae_trt.runtime.graphs import capturing
from qvae_trt.runtime.pytorch import PyTorchVae, needs_gradient
from qvae_trt.runtime.tiling import Tile, square_tile, tiled, usual_overlap
from qvae_trt.store.measured import Measured

#: Sides tried, largest first, when a picture does not fit.
_TILE_SIDES = (1024, 512, 256)
#: What serves; `pytorch` is diffusers' own, for video.
_By = Literal["static", "profiles", "fused", "folded", "pytorch", "tiles"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a ladder chooses what serves.

    Attributes:
        fallback: what to do where no engine serves.
        check_nan: treat NaN or infinity in an engine's result as a failed run. Waits for the
            device. What comes out with them is warned of, later.
        measured: what is followed where the fused path could go before an engine; None: engines do.
    """

    fallback: FallbackMode = "warn"
    check_nan: bool = False
    measured: Measured | None = None


class Ladder:
    """Runs either part of one VAE on whatever serves it best.

    Args:
        model: whose weights.
        engines: built from them.
        settings: how it chooses.
    """

    def __init__(self, model: Model, engines: Engines, settings: Settings) -> None:
        self.engines = engines
        self.settings = settings
        self.pytorch = PyTorchVae(model.vae, cuda_graphs=engines.cuda_graphs)
        self.notices = Notices(settings.fallback)
        self.finite = FiniteCheck(self.notices)
        weakref.finalize(self, self.finite.tell)  # also at the end of the process
        self._channels: dict[Part, int] = {"encoder": model.input_channels, "decoder": model.z_dim}
        self._kind = model.kind
        self._model = model.source
        self.served: Counts[tuple[str, str, _By]] = Counts()
        # Free bytes of the device when a size did not fit: tried whole again only with clearly
        # more.
        self._too_big: Recent[tuple[Part, torch.Size], int] = Recent()

    def serve(
        self,
        part: Part,
        given: torch.Tensor,
        *,
        device: torch.device,
        dtype: torch.dtype,
        tile: Tile | None,
    ) -> torch.Tensor:
        """(B, C, T, H, W) → (B, C', T', H', W'), in its dtype.

        Args:
            part: what to run.
            given: see `TrtVae.encode` and `decode`.
            device: where to run what is on the CPU. What is on an accelerator stays there: offload
                hooks may place either.
            dtype: what PyTorch computes in.
            tile: cut what is larger into such tiles.

        Raises:
            UsageError: no such tensor.
            DeviceMemoryError: no memory, also after room was made.
            ExecutionError: inside a caller's capture, what only PyTorch or tiles can serve.
            QvaeError: with `fallback="raise"`, why no engine serves.
        """
        self._check(part, given)
        x = (given.to(device) if given.device.type == "cpu" else given).resolve_neg()
        room_made = False
        while True:
            call = _Call(part, dtype)
            try:
                if x.shape[2] != 1:
                    return self._video(part, x, dtype)
                pictures = list(map(partial(self._picture, call, tile), torch.split(x, 1)))
                return pictures[0] if len(pictures) == 1 else torch.cat(pictures)
            except RuntimeError as error:
                # Engines, and PyTorch in their place, make room by themselves; video, and what puts
                # tiles and pictures together, do not.
                if capturing(x) or not out_of_memory(error):
                    raise
                if room_made:
                    raise memory.no_memory(
                        x.device, f"memory for the {part} of {tuple(x.shape)}"
                    ) from error
            self.engines.make_room(x.device)
            room_made = True

    def _picture(self, call: _Call, tile: Tile | None, x: torch.Tensor) -> torch.Tensor:
        """(1, C, 1, H, W) whole, or in the tiles asked for; where memory does not suffice, by
        PyTorch in smaller and smaller tiles.
        """
        size = self._size(call.part, x)
        cuts: list[Tile | None] = [None]
        longest = max(size.height, size.width)
        if tile is not None and (size.height > tile.height or size.width > tile.width):
            if capturing(x):
                raise ExecutionError(
                    f"{call.part}: tiles cannot be put together while a CUDA graph is captured",
                    fix="vae.disable_tiling()",
                )
            cuts, longest = [tile], max(tile.height, tile.width)
        # No larger than what did not fit, in latents: that would be the same again.
        scale = self._kind.scale
        sides = [side for side in _TILE_SIDES if side // scale < longest // scale]
        climb = self._climb
        for cut in (*cuts, *(square_tile(side, usual_overlap(side)) for side in sides)):
            with suppress(_TooBigError):
                if cut is None:
                    y = climb(call, x)
                else:
                    run = partial(climb, call)
                    y = tiled(run, x, part=call.part, tile=cut, scale=scale).to(x.dtype)
                    self.served.add((call.part, str(size), "tiles"))
                if not capturing(x):
                    self.finite.watch(f"{call.part} {size}", y)
                return y
            climb = self._by_pytorch
        raise DeviceMemoryError(
            f"{x.device}: no memory for the {call.part}, even in tiles of {_TILE_SIDES[-1]} pixels",
            fix="free device memory, or move the VAE to the CPU",
        )

    def _climb(self, call: _Call, x: torch.Tensor) -> torch.Tensor:
        """What fits in memory at once, by the best engine that works, else by PyTorch."""
        y = self._by_engine(call, x)
        if isinstance(y, _Unserved):
            where = f"{call.part} {self._size(call.part, x)}"
            if capturing(x) and not self.pytorch.fused.has_run(call.part, x):
                _refuse_captured(where, x, y.why())
            self._tell(where, x, y)
            free_then = self._too_big.get((call.part, x.shape))
            if free_then is not None and memory.free_bytes(x.device) < 1.25 * free_then:
                raise _TooBigError
            try:
                y = self._by_pytorch(call, x)
            except _TooBigError:
                self._too_big[call.part, x.shape] = memory.free_bytes(x.device)
                raise
        return y.to(x.dtype)

    def _by_engine(self, call: _Call, x: torch.Tensor) -> torch.Tensor | _Unserved:
        """static → profiles: the result, or why no engine gave one."""
        part, size = call.part, self._size(call.part, x)
        try:
            size.check()
        except ResolutionError as error:
            return _Unserved(partial(bare, error))
        no_engine = self._no_engine(x)
        unfit: dict[str, str] = dict.fromkeys(MODES, no_engine) if no_engine else {}
        tried = call.tried.setdefault(size, _Tried(unfit))
        while True:
            chosen = self.engines.choose(part, size, tried.unfit)
            choice = chosen.choice
            if choice.engine != "static" and choice.engine != "profiles":
                if tried.problem is not None:
                    return _Unserved(partial(bare, tried.problem), failed=True)
                return _Unserved(partial(self._missing, part, choice, mendable=no_engine is None))
            faster = None if tried.problem else _fused_first(self.settings.measured, part, choice)
            if faster is not None and self.pytorch.fused.refusal(x.device) is None:
                why = partial(EngineError, f"the fused path is {faster}")
                return _Unserved(why, chosen=True)
            try:
                y = self.engines.serve(part, chosen, x)
                if y is None:
                    continue
                if self.settings.check_nan and not capturing(y):
                    with memory.memory_named(y.device, "memory to look for NaN in a result"):
                        sound = bool(torch.isfinite(y).all())
                    if not sound:
                        raise ExecutionError(f"{choice.path}: NaN or infinity in its output")
            except (EngineError, BackendError) as error:
                if capturing(x):
                    raise
                tried.problem = tried.problem or bare(error)
                no_room = isinstance(error, DeviceMemoryError)
                tried.unfit |= dict.fromkeys(MODES if no_room else (choice.engine,), error.what)
            else:
                if tried.problem is not None:
                    instead = f"the {choice.engine} engine"
                    self.notices.note(f"{call.part} {size}", tried.problem, instead=instead)
                self.served.add((part, str(size), choice.engine))
                return y

    def _by_pytorch(self, call: _Call, x: torch.Tensor) -> torch.Tensor:
        """fused → folded: (1, C, 1, H, W) on x's device.

        Raises:
            _TooBigError: memory did not suffice; room has been made for a smaller attempt.
        """
        by: _By = "fused" if self.pytorch.fuses(x) else "folded"
        size = self._size(call.part, x)
        try:
            if by == "fused":
                y = self.pytorch.fused.run(call.part, x)
                look = self.settings.check_nan and not capturing(x)
                if look and not bool(torch.isfinite(y).all()):
                    error = ExecutionError("NaN or infinity in the output of the fused path")
                    self.notices.note(f"{call.part} {size}", error, instead="the folded network")
                    by = "folded"
            if by == "folded":
                y = self.pytorch.folded(call.part, x, call.dtype)
            self.served.add((call.part, str(size), by))
            return y
        except RuntimeError as error:
            if capturing(x) or not out_of_memory(error):
                raise
        # Out of the handler: the error's traceback holds the activations.
        self.engines.make_room(x.device)
        raise _TooBigError

    def _size(self, part: Part, x: torch.Tensor) -> Resolution:
        """Of the picture that pixels or latents are of."""
        side = 1 if part == "encoder" else self._kind.scale
        return Resolution(x.shape[3] * side, x.shape[4] * side)

    def _video(self, part: Part, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if not self._kind.video:
            raise UsageError(f"{part}: got {x.shape[2]} frames, {self._kind.name} takes one")
        error = UsageError(
            f"{x.shape[2]} frames: engines take one", fix="fallback='warn' runs video in PyTorch"
        )
        where = f"{part} of video"
        _refuse_captured(where, x, error)
        self.notices.give(where, error, instead="PyTorch, as diffusers ships it,")
        y = self.pytorch.video(part, x, dtype).to(x.dtype)
        self.served.add((part, str(self._size(part, x)), "pytorch"))
        return y

    def _no_engine(self, x: torch.Tensor) -> str | None:
        """Why no engine at all can take this tensor; None if they can."""
        if needs_gradient(x):
            return "the input requires a gradient, and engines have none"
        return self._elsewhere(x.device)

    def _elsewhere(self, device: torch.device) -> str | None:
        where = self.engines.device_type
        if device.type == where:
            return None
        return f"engines run on {where} here, the input is on {device.type}"

    def _missing(self, part: Part, choice: Choice, *, mendable: bool) -> QvaeError:
        """Why no engine serves; with the command for one, if that would (`mendable`)."""
        if self.engines.refusal is not None:
            return self.engines.refusal
        path = self.engines.path(part, "static", choice.resolution)
        adapter, fix = self.engines.adapter, None
        flavour = self.engines.other_backend(part, choice.resolution)
        if flavour is not None:
            fix = f"backend={flavour!r} (--backend {flavour}) takes the engines of {flavour}"
        elif mendable and path is not None and adapter is not None:
            fix = rebuild_command(path, model=self._model or "MODEL", backend=adapter.name)
        return EngineError(f"no engine serves it\n{choice.explain()}", fix=fix)

    def _tell(self, where: str, x: torch.Tensor, unserved: _Unserved) -> None:
        """Report that PyTorch serves, where users should know; with `fallback="raise"`, raise."""
        wanted = bool(self.engines.folders)
        if needs_gradient(x):
            self.notices.give(where, unserved.why(), instead="the folded network in PyTorch")
            return
        if self.notices.mode == "raise" and wanted and not unserved.chosen:
            # Before the fused path is asked: its first answer takes memory of the device.
            self.notices.give(where, unserved.why(), instead="")
        why = self.pytorch.fused.refusal(x.device)
        if why is not None:
            error = unserved.why() if wanted else why
            # Without engines it is one thing to know, and not one for each size.
            self.notices.give(where if wanted else "without engines", error, instead="PyTorch")
        elif unserved.failed:
            self.notices.note(where, unserved.why(), instead="the fused path")

    def _check(self, part: Part, x: object) -> None:
        """UsageError for what neither an engine nor PyTorch can take, or would read wrongly."""
        if _traced():
            raise UsageError(
                f"{part}: engines cannot be traced: the trace would hold one result forever",
                fix="call the VAE outside of what is traced",
            )
        channels, least = self._channels[part], self._kind.scale if part == "encoder" else 1
        got = _mistake(x, channels, least)
        if got is not None:
            raise UsageError(
                f"{part}: got {got}, expected floating point (B, {channels}, T, H, W) with no side"
                f" under {least}"
            )

    def choice(self, part: Part, resolution: Resolution, device: torch.device) -> Choice:
        """What serves a size on a device, with the reason for each candidate."""
        elsewhere = self._elsewhere(device)
        if elsewhere is None:
            choice = self.engines.checked_choice(part, resolution, device)
        else:
            unfit: dict[str, str] = dict.fromkeys(MODES, elsewhere)
            choice = self.engines.choose(part, resolution, unfit).choice
        faster = _fused_first(self.settings.measured, part, choice)
        if choice.engine != "folded" and faster is None:
            return choice
        why = self.pytorch.fused.refusal(device)
        if why is None:
            return with_fused(choice, faster or "no engine serves this size")
        if choice.engine != "folded":
            return choice
        return with_fused(choice, Refusal(why.what))

    def status(self, device: torch.device) -> dict[str, Any]:
        """What served, what did not and why, and what is in memory. See `TrtVae.status`."""
        devices = self.engines.loaded()
        devices.setdefault(device, ([], 0))
        return {
            "served": [
                {"part": part, "size": size, "by": by, "calls": calls}
                for (part, size, by), calls in self.served.all().items()
            ],
            "fallbacks": [
                {"where": where, "instead": instead or None, "reason": reason, "calls": calls}
                for (where, instead, reason), calls in self.notices.counts.all().items()
            ],
            "engines": [
                {"path": str(path), "device": str(device), "bytes": size}
                for device, (loaded, _) in devices.items()
                for path, size in loaded
            ],
            "memory": {
                str(device): {
                    "engine_bytes": sum(size for _, size in loaded),
                    "scratch_bytes": scratch,
                    "pytorch_bytes": memory.allocated_bytes(device),
                }
                for device, (loaded, scratch) in devices.items()
            },
        }

    def release(self) -> None:
        """Give all memory back, and forget what failed."""
        self.leave_device()
        self.engines.release()
        self.notices.forget()

    def leave_device(self) -> None:
        """Free the large buffers and copies; the engines stay loaded."""
        self.pytorch.release()
        self._too_big.clear()
        self.engines.release_scratch()


@dataclass(slots=True)
class _Tried:
    """What was tried for one size in this call.

    Attributes:
        unfit: modes whose engine did not serve it, with what went wrong.
        problem: the first error.
    """

    unfit: dict[str, str]
    problem: QvaeError | None = None


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of `Ladder.serve`: what failed for one picture is not tried for the next."""

    part: Part
    dtype: torch.dtype
    tried: dict[Resolution, _Tried] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Unserved:
    """No engine gave a result.

    Attributes:
        why: makes the error. That costs as much as launching a small picture, and where the fused
            path serves, nobody reads it.
        failed: one that is there could not.
        chosen: the fused path is preferred.
    """

    why: Callable[[], QvaeError]
    failed: bool = False
    chosen: bool = False


class _TooBigError(Exception):
    """It does not fit in memory at once."""


def _fused_first(times: Measured | None, part: Part, choice: Choice) -> str | None:
    """Why the fused path goes before the engine of a choice; None if it does not."""
    mode = choice.engine
    if times is None or (mode != "static" and mode != "profiles"):
        return None
    found = times.compare(part, choice.resolution, mode)
    if found is None or found[0] >= found[1]:
        return None
    return f"faster here: {found[0]:.1f} ms, the {mode} engine {found[1]:.1f} ms"


def _mistake(x: object, channels: int, least: int) -> str | None:
    """What the input is, if it is not a tensor of such a shape in memory; else None."""
    if not isinstance(x, torch.Tensor):
        return f"a {type(x).__name__} and no torch.Tensor"
    if x.is_nested:
        return "a nested tensor"
    shape = tuple(x.shape)
    fits = x.ndim == 5 and shape[1] == channels and min(shape) > 0 and min(shape[3:]) >= least
    if not fits or not x.is_floating_point():
        return f"{x.dtype} {shape} on {x.device}"
    if not _has_memory(x):
        return f"a {type(x).__name__} ({x.layout}, on {x.device}) without memory of its own"
    return None


def _refuse_captured(where: str, x: torch.Tensor, why: QvaeError) -> None:
    """ExecutionError inside a capture of the caller, which copying weights would void."""
    if capturing(x):
        raise ExecutionError(
            f"{where}: PyTorch cannot serve while a CUDA graph is captured: {why.what}",
            fix=why.fix or "run it once at this size before capturing it",
        )


def _traced() -> bool:
    """Inside `torch.jit.trace`, `torch.export` or `make_fx`: what engines do leaves no trace."""
    return torch.jit.is_tracing() or get_proxy_mode() is not None  # type: ignore[attr-defined, no-untyped-call]


def _has_memory(x: torch.Tensor) -> bool:
    """Whether its values lie where its address says: not those of a sparse tensor, of one on
    `meta`, of a subclass that wraps others, or inside `torch.func`.
    """
    try:
        return x.layout is torch.strided and x.data_ptr() != 0
    except RuntimeError:
        return False
