"""The VAE in PyTorch on any device: fused, folded to 2D, and as diffusers ships it."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.forward_ad import unpack_dual

from qvae_trt import fused
from qvae_trt.errors import BackendError, QvaeError
from qvae_trt.folding import FoldedVae, fold
from qvae_trt.kinds import kind_of
from qvae_trt.model import half_of
from qvae_trt.profiles import Part
from qvae_trt.runtime.cache import Recent, bare
from qvae_trt.runtime.graphs import captures, capturing
from qvae_trt.runtime.memory import keep_while_read, made_for_all, on

if TYPE_CHECKING:
    from diffusers import AutoencoderKLQwenImage

#: Above it a run takes longer than its launches.
_MOST_PIXELS = 768 * 768
_KEPT = 32

_Key = tuple[Part, torch.Size, torch.dtype]
#: With the input that it reads, and the output that it writes.
_Replay = tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]


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
        self._replays: dict[torch.device, _Replays] = {}
        self._ran: Recent[tuple[Part, torch.Size, torch.device], None] = Recent()
        self._captured = False
        self._lock = threading.RLock()

    def refusal(self, device: torch.device) -> QvaeError | None:
        """Why it does not serve on a device; None if it does.

        The first call for a device puts the weights there and compares a small picture with the
        folded network.
        """
        with self._lock:
            if device not in self._checked:
                self._checked[device] = self._check(device)
            checked = self._checked[device]
        return checked if isinstance(checked, QvaeError) else None

    def has_run(self, part: Part, x: torch.Tensor) -> bool:
        """Such a picture has run since the weights were placed, so that a run can be captured:
        nothing is compiled, loaded or chosen any more.
        """
        return (part, x.shape, x.device) in self._ran

    def run(self, part: Part, x: torch.Tensor) -> torch.Tensor:
        """(1, C, 1, H, W) of any floating dtype → (1, C', 1, H', W'), where `refusal` is None."""
        with self._lock:
            network = self.network(x.device)
            if capturing(x):
                self._captured = True
            else:
                keep_while_read(network, x.device)
        call = network.encode if part == "encoder" else network.decode
        with on(x.device):
            scale = 1 if part == "encoder" else self._scale
            small = x.shape[3] * x.shape[4] * scale**2 <= _MOST_PIXELS
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
            return bare(error)

    def network(self, device: torch.device) -> fused.FusedVae:
        """On a device, where `refusal` is None."""
        with self._lock:
            if device not in self._placed:
                with made_for_all(device):
                    host: Any = self._checked[device]
                    self._placed[device] = copy.deepcopy(host).to(device)
            return self._placed[device]

    def _replays_on(self, device: torch.device) -> _Replays:
        with self._lock:
            if device not in self._replays:
                self._replays[device] = _Replays(device)
            return self._replays[device]


class _Replays:
    """Captured runs on one device.

    All of them share one pool of memory, so that many sizes take no more than the largest. So one
    replay waits for the one before it, also on other streams.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._replays: OrderedDict[_Key, _Replay] = OrderedDict()
        self._seen: Recent[_Key, None] = Recent()
        self._lock = threading.Lock()
        self._pool = torch.cuda.graph_pool_handle()
        self._last = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run(
        self, part: Part, x: torch.Tensor, call: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """`call(x)`, replayed from its third run on."""
        key = (part, x.shape, x.dtype)
        with self._lock:
            replay = self._replays.get(key)
            if replay is None and key in self._seen:
                replay = self._capture(key, x, call)
            if replay is not None:
                self._replays.move_to_end(key)
                return self._replay(replay, x)
            self._seen[key] = None
        return call(x)

    def _replay(self, replay: _Replay, x: torch.Tensor) -> torch.Tensor:
        graph, source, result = replay
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(self._last)
        with torch.no_grad():
            source.copy_(x)
            graph.replay()
            y = result.clone()
        self._last.record(stream)
        return y

    def _capture(
        self, key: _Key, x: torch.Tensor, call: Callable[[torch.Tensor], torch.Tensor]
    ) -> _Replay | None:
        """None while an engine is loaded or captured: another run tries again."""
        with captures.one() as alone:
            if not alone:
                return None
            while len(self._replays) >= _KEPT:
                self._last.synchronize()
                self._replays.popitem(last=False)
            # Tensors made in inference mode can only be written in it.
            with torch.inference_mode(False), torch.no_grad():
                source, graph = torch.zeros_like(x), torch.cuda.CUDAGraph()
                torch.cuda.current_stream(self._device).synchronize()
                with torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                ):
                    y = call(source)
        self._replays[key] = graph, source, y
        return self._replays[key]

    def close(self) -> None:
        """Free all captured runs, once the last replay is over."""
        with self._lock:
            self._last.synchronize()
            self._replays.clear()
            self._seen.clear()


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
            network = self.folded_network(x.device, dtype)
            keep_while_read(network, x.device)
        return network.encode(x) if part == "encoder" else network.decode(x)

    def folded_network(self, device: torch.device, dtype: torch.dtype) -> FoldedVae:
        """Of qvae, there, in this dtype."""
        with self._lock:
            self._move(device, dtype)
            if self._folded is None:
                with made_for_all(device):
                    folded: Any = fold(self._source)
                    self._folded = folded.to(device, dtype, memory_format=torch.channels_last)
            return self._folded

    def video(self, part: Part, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Several frames, through diffusers' own Conv3d VAE: (B, C, T, H, W) → moments, or pixels
        in [-1, 1].
        """
        with self._lock:  # it keeps the frames it has seen on itself
            video = self.shipped(x.device, dtype)
            keep_while_read(video, x.device)
            return half_of(video, part)(x.to(dtype))

    def shipped(self, device: torch.device, dtype: torch.dtype) -> AutoencoderKLQwenImage:
        """diffusers' own VAE there, in this dtype."""
        with self._lock:
            self._move(device, dtype)
            if self._video is None:
                with made_for_all(device):
                    # That of diffusers warns of modules kept in float32, though none is.
                    to: Any = torch.nn.Module.to
                    self._video = to(copy.deepcopy(self._source), device, dtype)
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
