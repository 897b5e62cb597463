"""What serves where no engine does: the VAE in PyTorch, fused or folded, whole or in tiles, and the
warning that says so.
"""

from __future__ import annotations

import copy
import sys
import threading
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch.autograd.forward_ad import unpack_dual

from qvae_trt.errors import DeviceMemoryError, QvaeError, UsageError
from qvae_trt.folding import FoldedVae, fold
from qvae_trt.kinds import kind_of
from qvae_trt.runtime.fused_path import FusedPath
from qvae_trt.runtime.graphs import capturing
from qvae_trt.runtime.memory import keep_while_read, made_for_all, out_of_memory
from qvae_trt.runtime.recent import Recent
from qvae_trt.runtime.tiling import Tile, square_tile, tiled, usual_overlap

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from types import FrameType

    from diffusers import AutoencoderKLQwenImage

    from qvae_trt.profiles import Part

FallbackMode = Literal["warn", "raise", "silent"]

_OUR_FRAMES = ("qvae_trt.", "diffusers.utils.", "torch.nn.modules.", "torch._dynamo.")
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
        self._given: Recent[Hashable, None] = Recent()
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
        self._once(where, error, f"{where}: {instead} instead: {error}", FallbackWarning)

    def tell(self, where: str, error: QvaeError) -> None:
        """What came from `where` is to be looked at: warn once a reason, unless silent."""
        self._once(where, error, f"{where}: {error}", RuntimeWarning)

    def _once(self, where: str, error: QvaeError, text: str, category: type[Warning]) -> None:
        if self.mode == "silent":
            return
        reason = where, type(error), error.what
        with self._lock:
            known = reason in self._given
            self._given[reason] = None
        if not known:
            frame = _users_frame()
            # `warnings.warn` would keep every text, for ever, in the module that called.
            warnings.warn_explicit(
                text,
                category,
                frame.f_code.co_filename,
                frame.f_lineno,
                module=frame.f_globals.get("__name__"),
            )

    def forget(self) -> None:
        """Warn again of what was warned of before."""
        with self._lock:
            self._given.clear()


def _users_frame() -> FrameType:
    """The first caller that is neither of this package nor a wrapper, of diffusers or PyTorch,
    around `encode` and `decode`.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_OUR_FRAMES):
        frame = frame.f_back
    return frame


class PyTorchVae:
    """The VAE in PyTorch, one picture at a time: fused where that runs, else folded to 2D; as
    shipped for video.

    Weights are put on a device when it is first needed there, and stay until `release`.

    Args:
        vae: whose weights; stays where it is.
        make_room: frees what can be freed on a device, when memory does not suffice.
        cuda_graphs: replay small pictures of the fused network from CUDA graphs.

    Attributes:
        fused: the fused network; it serves where it can.
    """

    def __init__(
        self,
        vae: AutoencoderKLQwenImage,
        *,
        make_room: Callable[[torch.device], object],
        cuda_graphs: bool = False,
    ) -> None:
        self.fused = FusedPath(vae, cuda_graphs=cuda_graphs)
        self._source = vae
        self._scale = kind_of(vae).scale
        self._make_room = make_room
        self._folded: FoldedVae | None = None
        self._video: AutoencoderKLQwenImage | None = None
        self._place: tuple[torch.device, torch.dtype] | None = None
        # Free bytes of the device when a size did not fit: tried whole again only with clearly
        # more.
        self._too_big: Recent[tuple[str, int, int], int] = Recent()
        self._lock = threading.RLock()

    def fuses(self, x: torch.Tensor) -> bool:
        """Whether the fused network serves this tensor."""
        return not needs_gradient(x) and self.fused.refusal(x.device) is None

    def run(
        self, part: Part, x: torch.Tensor, dtype: torch.dtype, *, fuse: bool = True
    ) -> torch.Tensor:
        """(1, C, 1, H, W) → (1, C', 1, H', W') on x's device; in tiles if need be.

        Args:
            part: what to run.
            x: the picture, or latents.
            dtype: what the folded network computes in.
            fuse: False keeps to the folded network.

        Raises:
            DeviceMemoryError: not even the smallest tiles fit.
        """
        if capturing(x):
            return self._whole(part, x, dtype, fuse)
        size = (part, x.shape[3], x.shape[4])
        if not self._known_too_big(size, x.device):
            y = self._attempt(lambda: self._whole(part, x, dtype, fuse), x.device)
            if y is not None:
                return y
            self._too_big[size] = _free_bytes(x.device)
        longest = max(x.shape[3:]) // (self._scale if part == "encoder" else 1)  # in latents
        for side in _TILE_SIDES:
            if side // self._scale >= longest:
                continue  # one tile: the whole picture again
            tile = square_tile(side, usual_overlap(side))
            y = self._attempt(partial(self.tiled, part, x, tile, dtype, fuse=fuse), x.device)
            if y is not None:
                return y
        raise DeviceMemoryError(
            f"{x.device}: no memory for the {part}, even in tiles of {_TILE_SIDES[-1]} pixels",
            fix="free device memory, or move the VAE to the CPU",
        )

    def tiled(
        self, part: Part, x: torch.Tensor, tile: Tile, dtype: torch.dtype, *, fuse: bool = True
    ) -> torch.Tensor:
        """The same in tiles of this size."""
        return tiled(
            lambda piece: self._whole(part, piece, dtype, fuse),
            x,
            part=part,
            tile=tile,
            scale=self._scale,
        )

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
            video = self.shipped(x.device, dtype)
            keep_while_read(video, x.device)
            if part == "encoder":
                return video.encode(x.to(dtype)).latent_dist.parameters
            return video.decode(x.to(dtype), return_dict=False)[0]

    def shipped(self, device: torch.device, dtype: torch.dtype) -> AutoencoderKLQwenImage:
        """diffusers' own VAE there, in this dtype."""
        with self._lock:
            self._move(device, dtype)
            if self._video is None:
                with made_for_all(device):
                    self._video = copy.deepcopy(self._source).to(device, dtype)
            return self._video

    def release(self) -> None:
        """Drop the copies of the weights, and what was learned about memory."""
        self.fused.release()
        with self._lock:
            self._folded = self._video = self._place = None
            self._too_big.clear()

    def _whole(self, part: Part, x: torch.Tensor, dtype: torch.dtype, fuse: bool) -> torch.Tensor:
        if fuse and self.fuses(x):
            return self.fused.run(part, x)
        x = x.to(dtype)
        with self._lock:
            network = self._folded_on(x.device, dtype)
            keep_while_read(network, x.device)
        return network.encode(x) if part == "encoder" else network.decode(x)

    def _folded_on(self, device: torch.device, dtype: torch.dtype) -> FoldedVae:
        self._move(device, dtype)
        if self._folded is None:
            with made_for_all(device):
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
    """Whether the caller wants to differentiate with respect to x, backward or forward."""
    if x.requires_grad and torch.is_grad_enabled():
        return True
    return unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]


def _free_bytes(device: torch.device) -> int:
    """What an allocation could get: free on the device, and held by PyTorch but unused. 0 on the
    CPU.
    """
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
