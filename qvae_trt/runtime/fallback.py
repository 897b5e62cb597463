"""What serves where no engine does: the VAE in PyTorch, fused or folded, whole or in tiles, and the
warning that says so.
"""

from __future__ import annotations

import copy
import sys
import threading
import warnings
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from qvae_trt import fused
from qvae_trt.errors import BackendError, DeviceMemoryError, QvaeError, UsageError
from qvae_trt.folding import FoldedVae, fold
from qvae_trt.runtime.graphs import capturing
from qvae_trt.runtime.memory import out_of_memory
from qvae_trt.runtime.tiling import SCALE, Tile, square_tile, tiled, usual_overlap

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from diffusers import AutoencoderKLQwenImage

    from qvae_trt.profiles import Part

FallbackMode = Literal["warn", "raise", "silent"]

_OUR_FRAMES = ("qvae_trt.", "diffusers.utils.", "torch.nn.modules.")
#: Sides tried, largest first, when a picture does not fit.
_TILE_SIDES = (1024, 512, 256)


class FallbackWarning(UserWarning):
    """A picture came from PyTorch, or from another engine than the best one, and why."""


def check_mode(mode: str) -> None:
    """UsageError for a word that is no `FallbackMode`."""
    if mode not in get_args(FallbackMode):
        known = ", ".join(get_args(FallbackMode))
        raise UsageError(f"fallback is {mode!r}, expected one of {known}")


class Notices:
    """What to do with the reason of a fallback: warn once for each, raise, or nothing."""

    def __init__(self, mode: FallbackMode) -> None:
        check_mode(mode)
        self.mode: FallbackMode = mode
        self._given: set[Hashable] = set()
        self._lock = threading.Lock()

    def give(self, where: str, error: QvaeError, *, instead: str) -> None:
        """`where` (part and size) goes to PyTorch because of `error`: warn once for each reason, or
        raise it.
        """
        if self.mode == "raise":
            raise error
        self.note(where, error, instead=instead)

    def note(self, where: str, error: QvaeError, *, instead: str) -> None:
        """`where` goes to another engine than the best: warn once a reason, unless silent."""
        with self._lock:
            known = (where, type(error), error.what) in self._given
            self._given.add((where, type(error), error.what))
        if self.mode != "silent" and not known:
            text = f"{where}: {instead} instead: {error}"
            warnings.warn(text, FallbackWarning, stacklevel=_users_level())

    def forget(self) -> None:
        """Warn again of what was warned of before."""
        with self._lock:
            self._given.clear()


def _users_level() -> int:
    """The `stacklevel` of the first caller that is neither of this package nor a wrapper of
    diffusers around `encode` and `decode`.
    """
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_OUR_FRAMES):
        frame, level = frame.f_back, level + 1
    return level


class PyTorchVae:
    """The VAE in PyTorch, one picture at a time: fused where that runs, else folded to 2D; as
    shipped for video.

    Weights are put on a device when it is first needed there, and stay until `release`.

    Args:
        vae: whose weights; stays where it is.
        make_room: frees what can be freed on a device, when memory does not suffice.
    """

    def __init__(
        self, vae: AutoencoderKLQwenImage, *, make_room: Callable[[torch.device], object]
    ) -> None:
        self._source = vae
        self._make_room = make_room
        self._fused: dict[torch.device, fused.FusedVae] = {}
        # Of a device whose check was passed, the weights in host memory: they come back in
        # milliseconds. Of another one, why it was not.
        self._checked: dict[torch.device, fused.FusedVae | QvaeError] = {}
        # What has run fused since its weights were put there: captures can hold that.
        self._ran: set[tuple[Part, torch.Size, torch.device]] = set()
        self._captured = False
        self._folded: FoldedVae | None = None
        self._video: AutoencoderKLQwenImage | None = None
        self._place: tuple[torch.device, torch.dtype] | None = None
        # Free bytes of the device when a size did not fit: tried whole again only with clearly
        # more.
        self._too_big: dict[tuple[str, int, int], int] = {}
        self._lock = threading.RLock()

    def refusal(self, device: torch.device) -> QvaeError | None:
        """Why the fused path does not serve on a device; None if it does.

        The first call on a device puts the weights there and checks the kernels.
        """
        with self._lock:
            if device not in self._checked:
                self._checked[device] = self._check(device)
            checked = self._checked[device]
        return checked if isinstance(checked, QvaeError) else None

    def capturable(self, part: Part, x: torch.Tensor) -> bool:
        """Whether a caller's capture can hold a run of this picture."""
        return (part, x.shape, x.device) in self._ran

    def run(self, part: Part, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """(1, C, 1, H, W) → (1, C', 1, H', W') on x's device; in tiles if need be.

        Args:
            part: what to run.
            x: the picture, or latents.
            dtype: what the folded network computes in.

        Raises:
            DeviceMemoryError: not even the smallest tiles fit.
        """
        if capturing(x):
            return self._whole(part, x, dtype)
        size = (part, x.shape[3], x.shape[4])
        if not self._known_too_big(size, x.device):
            y = self._attempt(lambda: self._whole(part, x, dtype), x.device)
            if y is not None:
                return y
            self._too_big[size] = _free_bytes(x.device)
        longest = max(x.shape[3:]) // (SCALE if part == "encoder" else 1)  # in latents
        for side in _TILE_SIDES:
            if side // SCALE >= longest:
                continue  # one tile: the whole picture again
            tile = square_tile(side, usual_overlap(side))
            y = self._attempt(partial(self.tiled, part, x, tile, dtype), x.device)
            if y is not None:
                return y
        raise DeviceMemoryError(
            f"{x.device}: no memory for the {part}, even in tiles of {_TILE_SIDES[-1]} pixels",
            fix="free device memory, or move the VAE to the CPU",
        )

    def tiled(self, part: Part, x: torch.Tensor, tile: Tile, dtype: torch.dtype) -> torch.Tensor:
        """The same in tiles of this size."""
        return tiled(lambda piece: self._whole(part, piece, dtype), x, part=part, tile=tile)

    def _attempt(
        self, run: Callable[[], torch.Tensor], device: torch.device
    ) -> torch.Tensor | None:
        """The result, or None where memory did not suffice: then room has been made for a smaller
        attempt.
        """
        try:
            return run()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        # Out of the handler: the error's traceback holds the activations.
        self._make_room(device)
        return None

    def run_video(self, part: Part, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Several frames, through diffusers' own Conv3d VAE: (B, C, T, H, W) → moments, or pixels
        in [-1, 1].
        """
        with self._lock:  # it keeps the frames it has seen on itself
            self._move(x.device, dtype)
            if self._video is None:
                with _made_for_all(x.device):
                    self._video = copy.deepcopy(self._source).to(x.device, dtype)
            keep_while_read(self._video, x.device)
            if part == "encoder":
                return self._video.encode(x.to(dtype)).latent_dist.parameters
            return self._video.decode(x.to(dtype), return_dict=False)[0]

    def release(self) -> None:
        """Drop the copies of the weights, and what was learned about memory."""
        with self._lock:
            if not self._captured:  # else a caller's graph reads them
                self._fused.clear()
                self._ran.clear()
            self._folded = self._video = self._place = None
            self._too_big.clear()

    def _whole(self, part: Part, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        network: fused.FusedVae | FoldedVae
        fuses = not needs_gradient(x) and self.refusal(x.device) is None
        with self._lock:
            network = self._fused_on(x.device) if fuses else self._folded_on(x.device, dtype)
            if capturing(x):
                self._captured = True
            else:
                keep_while_read(network, x.device)
        given = x if fuses else x.to(dtype)
        y = network.encode(given) if part == "encoder" else network.decode(given)
        if fuses and x.device.type == "cuda":
            self._ran.add((part, x.shape, x.device))
        return y

    def _check(self, device: torch.device) -> fused.FusedVae | QvaeError:
        try:
            with _made_for_all(device):
                loaded = fused.load(self._source, device)
                self._fused[device] = loaded
                return copy.deepcopy(loaded).cpu()
        except BackendError as error:
            return error

    def _fused_on(self, device: torch.device) -> fused.FusedVae:
        if device not in self._fused:
            with _made_for_all(device):
                host: Any = self._checked[device]
                self._fused[device] = copy.deepcopy(host).to(device)
        return self._fused[device]

    def _folded_on(self, device: torch.device, dtype: torch.dtype) -> FoldedVae:
        self._move(device, dtype)
        if self._folded is None:
            with _made_for_all(device):
                folded: Any = fold(self._source)
                self._folded = folded.to(device, dtype, memory_format=torch.channels_last)
        return self._folded

    def _move(self, device: torch.device, dtype: torch.dtype) -> None:
        if self._place != (device, dtype):
            self._folded = self._video = None
            self._place = (device, dtype)

    def _known_too_big(self, size: tuple[str, int, int], device: torch.device) -> bool:
        free_then = self._too_big.get(size)
        return free_then is not None and _free_bytes(device) < 1.25 * free_then


def needs_gradient(x: torch.Tensor) -> bool:
    """Whether the caller wants to differentiate with respect to x."""
    return x.requires_grad and torch.is_grad_enabled()


@contextmanager
def _made_for_all(device: torch.device) -> Iterator[None]:
    """For making weights that later calls use: also those outside of inference mode, and on other
    streams.
    """
    with torch.inference_mode(False):
        yield
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def keep_while_read(module: torch.nn.Module, device: torch.device) -> None:
    """Weights that are dropped go back to PyTorch's allocator once the current stream has passed
    what it was given until then: they may have been made on another stream.
    """
    if device.type == "cuda":
        stream = torch.cuda.current_stream(device)
        for tensor in chain(module.parameters(), module.buffers()):
            tensor.record_stream(stream)


def _free_bytes(device: torch.device) -> int:
    """What an allocation could get: free on the device, and held by PyTorch but unused. 0 on the
    CPU.
    """
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
