"""The VAE in PyTorch on any device: fused, folded to 2D, and as diffusers ships it."""

from __future__ import annotations

import copy
import threading
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.forward_ad import unpack_dual

from qvae_trt.folding import FoldedVae, fold
from qvae_trt.runtime.fused_path import FusedPath
from qvae_trt.runtime.memory import keep_while_read, made_for_all

if TYPE_CHECKING:
    from diffusers import AutoencoderKLQwenImage

    from qvae_trt.profiles import Part


class PyTorchVae:
    """One VAE's networks in PyTorch.

    Weights are put on a device when they are first needed there, and stay until `release`.

    Args:
        vae: whose weights; stays where it is.
        cuda_graphs: replay small pictures of the fused network from CUDA graphs.

    Attributes:
        fused: the fused network.
    """

    def __init__(self, vae: AutoencoderKLQwenImage, *, cuda_graphs: bool = False) -> None:
        self.fused = FusedPath(vae, cuda_graphs=cuda_graphs)
        self._source = vae
        self._folded: FoldedVae | None = None
        self._video: AutoencoderKLQwenImage | None = None
        self._place: tuple[torch.device, torch.dtype] | None = None
        self._lock = threading.RLock()

    def fuses(self, x: torch.Tensor) -> bool:
        """Whether the fused network serves this tensor."""
        return not needs_gradient(x) and self.fused.refusal(x.device) is None

    def folded(self, part: Part, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """(1, C, 1, H, W) → (1, C', 1, H', W') on x's device, computed in `dtype`."""
        x = x.to(dtype)
        with self._lock:
            self._move(x.device, dtype)
            if self._folded is None:
                with made_for_all(x.device):
                    folded: Any = fold(self._source)
                    self._folded = folded.to(x.device, dtype, memory_format=torch.channels_last)
            network: FoldedVae = self._folded
            keep_while_read(network, x.device)
        return network.encode(x) if part == "encoder" else network.decode(x)

    def video(self, part: Part, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
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
        """Drop the copies of the weights."""
        self.fused.release()
        with self._lock:
            self._folded = self._video = self._place = None

    def _move(self, device: torch.device, dtype: torch.dtype) -> None:
        if self._place != (device, dtype):
            self._folded = self._video = None
            self._place = (device, dtype)


def needs_gradient(x: torch.Tensor) -> bool:
    """Whether the caller wants to differentiate with respect to x, backward or forward."""
    if x.requires_grad and torch.is_grad_enabled():
        return True
    return unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]
