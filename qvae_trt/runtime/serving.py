"""Serving a tensor: static engine → profiles engine → fused → folded → tiles, and saying why."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from qvae_trt.errors import (
    BackendError,
    DeviceMemoryError,
    EngineError,
    ExecutionError,
    QvaeError,
    ResolutionError,
    UsageError,
)
from qvae_trt.model import DEFAULT_MODEL
from qvae_trt.profiles import Candidate, Choice, Part, Resolution, rebuild_command
from qvae_trt.runtime.failures import bare
from qvae_trt.runtime.fallback import Notices, PyTorchVae, needs_gradient
from qvae_trt.runtime.finite import FiniteCheck
from qvae_trt.runtime.graphs import capturing
from qvae_trt.runtime.memory import memory_named, out_of_memory
from qvae_trt.runtime.preference import Preference
from qvae_trt.runtime.tiling import Tile, tiled

if TYPE_CHECKING:
    from diffusers import AutoencoderKLQwenImage

    from qvae_trt.model import Model
    from qvae_trt.runtime.fallback import FallbackMode
    from qvae_trt.runtime.selection import Engines


class Server:
    """Runs either part of one VAE on whatever serves it best.

    Args:
        model: whose weights.
        engines: built from them.
        fallback: what to do where no engine serves.
        check_nan: treat NaN or infinity in an engine's result as a failed run. Waits for the
            device. What comes out with them is warned of, later.
        preference: whether the fused path goes before an engine; None: it never does.
    """

    def __init__(
        self,
        model: Model,
        engines: Engines,
        *,
        fallback: FallbackMode,
        check_nan: bool,
        preference: Preference | None = None,
    ) -> None:
        self.engines = engines
        self.preference = preference or Preference("engine", None, None)
        self.check_nan = check_nan
        self._channels: dict[Part, int] = {"encoder": model.input_channels, "decoder": model.z_dim}
        self._kind = model.kind
        self._model = None if model.source == DEFAULT_MODEL else model.source
        self._notices = Notices(fallback)
        self._finite = FiniteCheck(self._notices)
        weakref.finalize(self, self._finite.tell)  # also at the end of the process
        self._pytorch = PyTorchVae(
            model.vae, make_room=engines.make_room, cuda_graphs=engines.cuda_graphs
        )

    def run(
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
        try:
            return self._run(part, x, dtype, tile)
        except RuntimeError as error:
            # Engines, and PyTorch in their place, make room by themselves; video, and what puts
            # tiles and pictures together, do not.
            if capturing(x) or not out_of_memory(error):
                raise
        self.engines.make_room(x.device)
        with memory_named(x.device, f"memory free for the {part} of {tuple(x.shape)}"):
            return self._run(part, x, dtype, tile)

    def _run(
        self, part: Part, x: torch.Tensor, dtype: torch.dtype, tile: Tile | None
    ) -> torch.Tensor:
        if x.shape[2] != 1:
            return self._video(part, x, dtype)
        side = 1 if part == "encoder" else self._kind.scale
        if tile is None or (x.shape[3] * side <= tile.height and x.shape[4] * side <= tile.width):
            return self._serve(part, x, dtype)
        if capturing(x):
            raise ExecutionError(
                f"{part}: tiles cannot be put together while a CUDA graph is captured",
                fix="vae.disable_tiling()",
            )
        whole = [
            tiled(
                lambda piece: self._serve(part, piece, dtype),
                one,
                part=part,
                tile=tile,
                scale=self._kind.scale,
            )
            for one in _ones(x)
        ]
        return torch.cat(whole)

    @property
    def fallback(self) -> FallbackMode:
        return self._notices.mode

    def shipped(self, device: torch.device, dtype: torch.dtype) -> AutoencoderKLQwenImage:
        """diffusers' own VAE, placed there."""
        return self._pytorch.shipped(device, dtype)

    def release(self) -> None:
        """Give all memory back, and forget what failed."""
        self._pytorch.release()
        self.engines.release()
        self._notices.forget()

    def leave_device(self) -> None:
        """Give back what is large; the engines stay loaded."""
        self._pytorch.release()
        self.engines.release_scratch()

    def choice(self, part: Part, resolution: Resolution, device: torch.device) -> Choice:
        """What serves a size on a device, with the reason for each candidate."""
        engines_here = device.type == self.engines.device_type
        choice = self.engines.checked_choice(part, resolution, device if engines_here else None)
        faster = self.preference.fused_first(part, choice)
        if choice.engine != "pytorch" and faster is None:
            return choice
        why = self._pytorch.fused.refusal(device)
        if choice.engine != "pytorch" and why is not None:
            return choice
        engines = [
            replace(candidate, accepted=False, reason="holds it, and fused is preferred")
            if candidate.accepted
            else candidate
            for candidate in choice.candidates[:-1]
        ]
        if why is None:
            fused = Candidate("fused", True, faster or "no engine serves this size")
            folded = Candidate("pytorch", False, "fused serves this size")
            candidates = (*engines, fused, folded)
            return replace(choice, engine="fused", profile_index=None, candidates=candidates)
        fused = Candidate("fused", False, why.what)
        return replace(choice, candidates=(*engines, fused, *choice.candidates[-1:]))

    def _serve(self, part: Part, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """(B, C, 1, H, W) by the best engine that works, else by PyTorch."""
        side = 1 if part == "encoder" else self._kind.scale
        size = Resolution(x.shape[3] * side, x.shape[4] * side)
        where = f"{part} {size}"
        y = self._by_engine(part, size, x)
        if isinstance(y, _Unserved):
            ones = _ones(x)
            if capturing(x) and not self._pytorch.fused.has_run(part, ones[0]):
                _refuse_captured(where, x, y.error)
            self._tell(where, x, y)
            parts = [self._by_pytorch(part, one, dtype, where) for one in ones]
            y = (parts[0] if len(parts) == 1 else torch.cat(parts)).to(x.dtype)
        if not capturing(x):
            self._finite.watch(where, y)
        return y

    def _by_pytorch(
        self, part: Part, one: torch.Tensor, dtype: torch.dtype, where: str
    ) -> torch.Tensor:
        """One picture, by the folded network where the fused one gives NaN and `check_nan` asks."""
        y = self._pytorch.run(part, one, dtype)
        fuses = self._pytorch.fuses(one)
        if not (fuses and self.check_nan) or capturing(one) or bool(torch.isfinite(y).all()):
            return y
        error = ExecutionError("NaN or infinity in the output of the fused path")
        self._notices.note(where, error, instead="the folded network")
        return self._pytorch.run(part, one, dtype, fuse=False)

    def _tell(self, where: str, x: torch.Tensor, unserved: _Unserved) -> None:
        """What people should know of PyTorch serving; with `fallback="raise"`, the error."""
        wanted = self.engines.given
        if needs_gradient(x):
            self._notices.give(where, unserved.error, instead="the folded network in PyTorch")
            return
        why = self._pytorch.fused.refusal(x.device)
        if why is not None:
            error = unserved.error if wanted else why
            # Without engines it is one thing to know, and not one for each size.
            self._notices.give(where if wanted else "", error, instead="PyTorch")
        elif self._notices.mode == "raise" and wanted and not unserved.chosen:
            raise unserved.error
        elif unserved.failed:
            self._notices.note(where, unserved.error, instead="the fused path")

    def _by_engine(self, part: Part, size: Resolution, x: torch.Tensor) -> torch.Tensor | _Unserved:
        """The result, or why no engine gave one."""
        try:
            size.check()
        except ResolutionError as error:
            return _Unserved(error)
        problem: QvaeError | None = None
        unfit = self._unfit(x)
        servable = not unfit
        while True:
            choice = self.engines.choice(part, size, unfit=unfit)
            if choice.engine == "pytorch":
                missing = self._missing(part, choice, mendable=servable)
                return _Unserved(problem or missing, failed=problem is not None)
            faster = None if problem else self.preference.fused_first(part, choice)
            if faster is not None and self._pytorch.fused.refusal(x.device) is None:
                return _Unserved(EngineError(f"the fused path is {faster}"), chosen=True)
            try:
                y = self.engines.run(part, choice, x)
                if self.check_nan and not capturing(y):
                    _require_finite(y, choice)
            except (EngineError, BackendError) as error:
                if capturing(x):
                    raise
                problem = problem or bare(error)
                if isinstance(error, DeviceMemoryError):
                    return _Unserved(problem, failed=True)
                unfit[choice.engine] = error.what
            else:
                if problem is not None:
                    where = f"{part} {size}"
                    self._notices.note(where, problem, instead=f"the {choice.engine} engine")
                return y

    def _unfit(self, x: torch.Tensor) -> dict[str, str]:
        """Why no engine at all can take this tensor; empty if they can."""
        where = self.engines.device_type
        if needs_gradient(x):
            why = "the input requires a gradient, and engines have none"
        elif x.device.type != where:
            why = f"engines run on {where} here, the input is on {x.device.type}"
        else:
            return {}
        return dict.fromkeys(("static", "profiles"), why)

    def _missing(self, part: Part, choice: Choice, *, mendable: bool) -> QvaeError:
        """Why no engine serves; with the command for one, if that would (`mendable`)."""
        if self.engines.refusal is not None:
            return self.engines.refusal
        path = self.engines.path(part, "static", choice.resolution)
        backend, fix = self.engines.backend, None
        flavour = self.engines.other_backend(part, choice.resolution)
        if flavour is not None:
            fix = f"backend={flavour!r} (--backend {flavour}) takes the engines of {flavour}"
        elif mendable and path is not None and backend is not None:
            fix = rebuild_command(path, model=self._model, backend=backend.name)
        return EngineError(f"no engine serves it\n{choice.explain()}", fix=fix)

    def _video(self, part: Part, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if not self._kind.video:
            raise UsageError(f"{part}: got {x.shape[2]} frames, {self._kind.name} takes one")
        error = UsageError(
            f"{x.shape[2]} frames: engines take one",
            fix="fallback='warn' runs video in PyTorch",
        )
        where = f"{part} of video"
        _refuse_captured(where, x, error)
        self._notices.give(where, error, instead="PyTorch, as diffusers ships it,")
        return self._pytorch.run_video(part, x, dtype).to(x.dtype)

    def _check(self, part: Part, x: object) -> None:
        """UsageError for what neither an engine nor PyTorch can take, or would read wrongly."""
        if _traced():
            raise UsageError(
                f"{part}: engines cannot be traced: the trace would hold one result for ever",
                fix="call the VAE outside of what is traced",
            )
        channels, least = self._channels[part], self._kind.scale if part == "encoder" else 1
        got = _mistake(x, channels, least)
        if got is not None:
            raise UsageError(
                f"{part}: got {got}, expected floating point (B, {channels}, T, H, W) with no side"
                f" under {least}"
            )


@dataclass(frozen=True, slots=True)
class _Unserved:
    """Why no engine gave a result.

    Attributes:
        failed: one that is there could not.
        chosen: the fused path is preferred.
    """

    error: QvaeError
    failed: bool = False
    chosen: bool = False


def _mistake(x: object, channels: int, least: int) -> str | None:
    """What is given, where it is no tensor of such a shape in memory."""
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


def _require_finite(y: torch.Tensor, choice: Choice) -> None:
    """ExecutionError for an engine's result that is not finite."""
    with memory_named(y.device, "memory free to look for NaN in a result"):
        sound = bool(torch.isfinite(y).all())
    if not sound:
        raise ExecutionError(f"{choice.path}: NaN or infinity in its output")


def _refuse_captured(where: str, x: torch.Tensor, why: QvaeError) -> None:
    """ExecutionError inside a capture of the caller, which copying weights would void."""
    if capturing(x):
        raise ExecutionError(
            f"{where}: PyTorch cannot serve while a CUDA graph is captured: {why.what}",
            fix=why.fix or "run it once at this size before capturing it",
        )


def _traced() -> bool:
    """Inside `torch.jit.trace`, `torch.export` or `make_fx`: what engines do leaves no trace."""
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return tracing or get_proxy_mode() is not None


def _has_memory(x: torch.Tensor) -> bool:
    """Whether its values lie where its address says: not those of a sparse tensor, of one on
    `meta`, of a subclass that wraps others, or inside `torch.func`.
    """
    try:
        return x.layout is torch.strided and x.data_ptr() != 0
    except RuntimeError:
        return False


def _ones(x: torch.Tensor) -> list[torch.Tensor]:
    return [x[i : i + 1] for i in range(x.shape[0])]
