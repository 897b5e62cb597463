"""The columns of the table: each way to run one part of the VAE at one size, made ready to be
timed.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch

from qvae_trt import backends
from qvae_trt.bench.results import ENGINES, Fact
from qvae_trt.bench.timing import make_inputs, peak_bytes
from qvae_trt.commands import build_command
from qvae_trt.errors import BenchError, EngineError
from qvae_trt.model import Model, half_of
from qvae_trt.opening import Wanted
from qvae_trt.profiles import Mode, Part, Precision, Resolution, nearest
from qvae_trt.runtime.cache import bare
from qvae_trt.runtime.engine import Engine
from qvae_trt.runtime.memory import shared_scratch
from qvae_trt.runtime.pytorch import PyTorchVae
from qvae_trt.store import engine_file
from qvae_trt.tensors import DTYPES

if TYPE_CHECKING:
    from qvae_trt.bench.run import BenchSettings


@dataclass(slots=True, kw_only=True)
class Prepared:
    """One path, ready to run: `call` takes what `make_inputs` makes and returns the output on the
    same device.

    `weights_bytes` is what stays on the device between calls.
    """

    name: str
    dtype: torch.dtype
    call: Callable[[torch.Tensor], torch.Tensor]
    weights_bytes: int | None = None
    detail: dict[str, Fact] = field(default_factory=dict)


class Workbench:
    """Holds the model on the device in its several forms, and opens engines, for as long as a bench
    lasts.

    Attributes:
        precision, dtype: what PyTorch runs in: bf16 on a GPU and fp32 on a CPU.
        opened: the backend, once an engine was asked for; else None.
    """

    def __init__(self, model: Model, settings: BenchSettings, *, device: str) -> None:
        self.model, self.settings, self.device = model, settings, device
        self.precision: Precision = "bf16" if device == "cuda" else "fp32"
        self.dtype: torch.dtype = getattr(torch, DTYPES[self.precision])
        self.opened: Any = None
        self._place = torch.empty(0, device=device).device
        self._networks = PyTorchVae(model.vae)

    def prepare(self, name: str, part: Part, resolution: Resolution, stack: ExitStack) -> Prepared:
        """Make a path ready; what only this path holds is given back at the end of `stack`. Raises
        one of EXPECTED where it cannot be measured here; the message is the reason.
        """
        if name in ENGINES:
            return self._engine(name, part, resolution, stack)
        if name == "pytorch":
            dtype, modules, call = self.dtype, *self._shipped(part)
        else:
            network: Any = self._network(name)
            dtype = network.dtype if name == "fused" else self.dtype
            modules = [network.encoder if part == "encoder" else network.decoder]
            call = network.encode if part == "encoder" else network.decode
            if name == "compiled":
                call = self._compile(call)
        return Prepared(name=name, dtype=dtype, call=call, weights_bytes=_parameter_bytes(modules))

    def make_inputs(self, part: Part, resolution: Resolution, *, count: int) -> list[torch.Tensor]:
        """Inputs on the device, the same ones for the same size."""
        shape, seed = self.model.shape(part, resolution), 20240 + resolution.pixels
        made = make_inputs(part, shape, count=count, seed=seed)
        return [value.to(self.device) for value in made]

    def empty_caches(self) -> None:
        """Give freed memory back, so that one size's leftovers neither help nor hinder the next."""
        if self.device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()

    def peak_bytes(self, prepared: Prepared, value: torch.Tensor) -> int | None:
        """Weights and the most that one call takes beyond what was allocated before it; None on a
        CPU.
        """
        if self.device != "cuda" or prepared.weights_bytes is None:
            return None
        # An engine's scratch is then allocated, and seen, inside the call.
        shared_scratch(self._place).release()
        return prepared.weights_bytes + peak_bytes(lambda: prepared.call(value))

    def versions(self) -> dict[str, str]:
        """The backend's version, known once an engine was asked for."""
        return {} if self.opened is None else {self.opened.name: self.opened.version()}

    def close(self) -> None:
        self._networks.release()
        self.empty_caches()

    def _network(self, name: str) -> Any:
        """The fused network, else the folded one."""
        if name != "fused":
            return self._networks.folded_network(self._place, self.dtype)
        why = self._networks.fused.refusal(self._place)
        if why is not None:
            raise bare(why)  # it is raised for each size
        return self._networks.fused.network(self._place)

    def _shipped(self, part: Part) -> tuple[list[Any], Callable[[torch.Tensor], torch.Tensor]]:
        """The modules of a part, and how diffusers calls them."""
        vae: Any = self._networks.shipped(self._place, self.dtype)
        if part == "encoder":
            return [vae.encoder, vae.quant_conv], half_of(vae, part)
        return [vae.decoder, vae.post_quant_conv], half_of(vae, part)

    def _compile(self, call: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        if self.device != "cuda":
            compiler = os.environ.get("CXX", "g++")
            if shutil.which(compiler) is None:
                raise BenchError(
                    f"torch.compile needs a C++ compiler on a CPU; there is no {compiler}",
                    fix="install g++, or name another in CXX",
                )
        elif importlib.util.find_spec("triton") is None:
            raise BenchError(
                "this Python has no Triton, which torch.compile needs on a GPU",
                fix="run --baseline pytorch --baseline compiled in one that has it, "
                "then qvae report both latency.json",
            )
        # Each size gets kernels of its own; without the reset the second size would be compiled as
        # a dynamic one.
        torch._dynamo.reset()
        return torch.compile(call, dynamic=False)

    def _engine(self, mode: Mode, part: Part, resolution: Resolution, stack: ExitStack) -> Prepared:
        engine_dir = self.settings.engine_dir
        if engine_dir is None:
            raise BenchError("no engine folder was given")
        # TensorRT allocates past PyTorch's allocator, which would keep what other paths have freed.
        self.empty_caches()
        if self.opened is None:
            self.opened = backends.get(self.settings.backend)
        backend = self.opened
        backend.can_run().require()
        sizes = (resolution,) if mode == "static" else ()
        file = engine_file(engine_dir, part, mode, backend.suffix, *sizes)
        path, name = file.path, str(file.path.relative_to(engine_dir))
        if not file.is_there:
            asked = {"model": self.model.source, "backend": backend.name}
            command = build_command(mode, *sizes, engine_dir=engine_dir, **asked)
            raise EngineError(f"no engine {name}", fix=command)
        before = _free_bytes(self.device)
        begin = time.perf_counter()
        weights, vae = self.model.weights_sha256, self.model.kind.name
        wanted = Wanted(backend=backend, weights_sha256=weights, vae=vae)
        graphs = self.settings.cuda_graphs
        opened = Engine.open(file, wanted, device=self._place, cuda_graph=graphs)
        engine: Any = stack.enter_context(closing(opened))
        load_ms = (time.perf_counter() - begin) * 1000.0
        taken = before - _free_bytes(self.device)
        key = engine.sidecar.key
        profile = nearest(resolution, key.profiles)
        if profile is None:
            raise EngineError(f"no profile of {path.name} holds {resolution}")
        detail: dict[str, Fact] = {
            "engine": name,
            "engine_bytes": path.stat().st_size,
            "load_ms": load_ms,
            "load_bytes": taken,
            "flavour": f"{key.flavour} {key.flavour_version}",
            "engine_precision": key.precision,
            "lowering": key.lowering,
            "cuda_graph": engine.wants_graph,
        }
        if mode == "profiles":
            detail |= {"profile_index": profile, "profile": str(key.profiles[profile])}
        return Prepared(
            name=mode,
            dtype=cast("torch.dtype", getattr(torch, engine.input.dtype)),
            call=lambda value: engine.run(value, profile=profile),
            # What the driver shows (load_bytes) has the library's own start in it, the first time.
            weights_bytes=path.stat().st_size if self.device == "cuda" else None,
            detail=detail,
        )


def _parameter_bytes(modules: Iterable[Any]) -> int:
    tensors = [tensor for module in modules for tensor in module.parameters()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _free_bytes(device: str) -> int:
    if device != "cuda":
        return 0
    torch.cuda.synchronize()
    return int(torch.cuda.mem_get_info()[0])
