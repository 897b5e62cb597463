"""The fused network on the devices where it runs: its weights there, its check, its captures."""

from __future__ import annotations

import copy
import threading
from typing import TYPE_CHECKING, Any

import torch

from qvae_trt import fused
from qvae_trt.errors import BackendError, QvaeError
from qvae_trt.kinds import kind_of
from qvae_trt.runtime.graphs import capturing
from qvae_trt.runtime.holdings import on
from qvae_trt.runtime.memory import keep_while_read, made_for_all
from qvae_trt.runtime.recent import Recent
from qvae_trt.runtime.replays import MOST_PIXELS, Replays

if TYPE_CHECKING:
    from diffusers import AutoencoderKLQwenImage

    from qvae_trt.profiles import Part


class FusedPath:
    """One VAE, fused, on any number of devices.

    Args:
        vae: whose weights; stays where it is.
        cuda_graphs: replay small pictures from CUDA graphs.
    """

    def __init__(self, vae: AutoencoderKLQwenImage, *, cuda_graphs: bool) -> None:
        self._vae = vae
        self._scale = kind_of(vae).scale
        self._cuda_graphs = cuda_graphs
        # Of a device that passed the check, the weights in host memory, from where they come back
        # in milliseconds; of another one, why it cannot serve.
        self._checked: dict[torch.device, fused.FusedVae | QvaeError] = {}
        self._placed: dict[torch.device, fused.FusedVae] = {}
        self._replays: dict[torch.device, Replays] = {}
        self._ran: Recent[tuple[Part, torch.Size, torch.device], None] = Recent()
        self._captured = False
        self._lock = threading.RLock()

    def refusal(self, device: torch.device) -> QvaeError | None:
        """Why it does not serve on a device; None if it does.

        The first call for a device puts the weights there and compares a small picture with the
        folded network.
        """
        if device == torch.device("cuda") and torch.cuda.is_available():
            device = torch.device("cuda", torch.cuda.current_device())
        with self._lock:
            if device not in self._checked:
                self._checked[device] = self._check(device)
            checked = self._checked[device]
        return checked if isinstance(checked, QvaeError) else None

    def has_run(self, part: Part, x: torch.Tensor) -> bool:
        """Such a picture has run since the weights were placed, so that a capture can hold a run:
        nothing is compiled, loaded or chosen any more.
        """
        return (part, x.shape, x.device) in self._ran

    def run(self, part: Part, x: torch.Tensor) -> torch.Tensor:
        """(1, C, 1, H, W) of any floating dtype → (1, C', 1, H', W'), where `refusal` is None."""
        with self._lock:
            network = self._network(x.device)
            if capturing(x):
                self._captured = True
            else:
                keep_while_read(network, x.device)
        call = network.encode if part == "encoder" else network.decode
        with on(x.device):
            scale = 1 if part == "encoder" else self._scale
            small = x.shape[3] * x.shape[4] * scale**2 <= MOST_PIXELS
            if self._cuda_graphs and small and not capturing(x):
                y = self._replays_on(x.device).run(part, x, call)
            else:
                y = call(x)
        self._ran[part, x.shape, x.device] = None
        return y

    def release(self) -> None:
        """Give the device memory back, unless a caller's graph reads it."""
        with self._lock:
            for replays in self._replays.values():
                replays.close()
            self._replays.clear()
            if not self._captured:
                self._placed.clear()
                self._ran.clear()

    def _check(self, device: torch.device) -> fused.FusedVae | QvaeError:
        try:
            with made_for_all(device), on(device):
                self._placed[device] = fused.load(self._vae, device)
                return copy.deepcopy(self._placed[device]).cpu()
        except BackendError as error:
            return error

    def _network(self, device: torch.device) -> fused.FusedVae:
        if device not in self._placed:
            with made_for_all(device):
                host: Any = self._checked[device]
                self._placed[device] = copy.deepcopy(host).to(device)
        return self._placed[device]

    def _replays_on(self, device: torch.device) -> Replays:
        with self._lock:
            if device not in self._replays:
                self._replays[device] = Replays(device)
            return self._replays[device]
