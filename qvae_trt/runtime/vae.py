"""The VAE that a pipeline sees: static engine → profiles engine → fused → folded → tiles."""

from __future__ import annotations

import copy
import inspect
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from diffusers import AutoencoderKLQwenImage
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.autoencoders.vae import (
    AutoencoderMixin,
    DecoderOutput,
    DiagonalGaussianDistribution,
)
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook

from qvae_trt.backends import Backend
from qvae_trt.errors import ModelError, StoreError, UsageError
from qvae_trt.kinds import kind_named
from qvae_trt.model import DEFAULT_MODEL, Model, load_model
from qvae_trt.profiles import PARTS, Choice, Part, Resolution
from qvae_trt.runtime import arguments
from qvae_trt.runtime.engines import Engines
from qvae_trt.runtime.fallback import FallbackMode, FallbackWarning
from qvae_trt.runtime.ladder import Ladder, Settings
from qvae_trt.runtime.tiling import Tile, usual_overlap
from qvae_trt.store import measured

__all__ = ["FallbackWarning", "TrtVae", "load_vae"]

Prefer = Literal["engine", "fastest"]


class _StandsFor(type):
    """A class that equals those it stands for: `from_pipe` of diffusers asks for one of them."""

    def __eq__(cls, other: object) -> bool:
        return other is cls or (isinstance(other, type) and kind_named(other.__name__) is not None)

    __hash__ = type.__hash__


class TrtVae(ModelMixin, AutoencoderMixin, ConfigMixin, metaclass=_StandsFor):
    """Stands where diffusers' `AutoencoderKLQwenImage` or `AutoencoderKLQwenImage21` stands, and
    runs engines.

    Made by `load_vae`. Everything a Qwen-Image pipeline asks of its VAE is here: `encode`,
    `decode`, `config`, `dtype`, `device`, `.to(...)`, tiling and slicing. It has no weights:
    engines hold them on the device, and the copies for PyTorch are made when they are first needed.
    Several threads may call it at once. Pickled, it is the names of its weights and engines, which
    another process loads again.

    A call can be captured into a CUDA graph of yours, after one ordinary run of a static engine.
    The graph shares that engine's execution context, and what TensorRT keeps in it: let no replay
    overlap with another replay or call of the same engine (part and size), and keep this VAE as
    long as the graph.

    `dtype` is what PyTorch computes in where no engine serves, and what pipelines cast latents to.
    Results have the dtype of the input, whatever the engine's. Slicing changes nothing: a batch
    always runs one picture at a time.
    """

    config_name = "config.json"

    def __init__(
        self,
        model: Model,
        engines: Engines,
        settings: Settings,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if settings.fallback == "raise" and engines.folders and engines.refusal is not None:
            raise engines.refusal
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype is None:
            on_gpu = arguments.empty_on(device, torch.float32).is_cuda
            dtype = torch.bfloat16 if on_gpu else torch.float32
        super().__init__()
        self.eval()
        # Pipelines write down the class of what they hold, by this name and `__class__`.
        self.__module__ = type(model.vae).__module__
        # Says where and in what dtype this VAE is, and is what `.to(...)` moves and casts. A
        # parameter, since offload hooks ask a module's first parameter for its device; an empty
        # one, since engines hold the weights.
        self._place = torch.nn.Parameter(arguments.empty_on(device, dtype), requires_grad=False)
        self.register_to_config(
            **{k: v for k, v in model.vae.config.items() if not k.startswith("_")}
        )
        self._model = (model,)  # a tuple, so that nothing of it is registered, moved or cast
        self._ladder = Ladder(model, engines, settings)
        self.z_dim: int = model.vae.config.z_dim
        self.input_channels: int = model.input_channels
        self.temperal_downsample = list(model.vae.config.temperal_downsample)
        self.temperal_upsample = self.temperal_downsample[::-1]
        self.kind = model.kind
        self.spatial_compression_ratio = self.kind.scale
        self.use_slicing = False
        self.use_tiling = False
        # Larger than diffusers' 256 and 192: attention sees one tile only, and 1024x1024 has a
        # profile of its own.
        self.tile_sample_min_height = self.tile_sample_min_width = 1024
        self.tile_sample_stride_height = self.tile_sample_stride_width = 896

    @property  # type: ignore[misc]  # of which typeshed knows a setter too
    def __class__(self) -> type[Any]:
        """What `isinstance` finds too, and what a saved pipeline names: its folder holds that VAE,
        and loads where there is no qvae.
        """
        model = self.__dict__.get("_model")
        return type(self) if model is None else type(model[0].vae)

    def _get_name(self) -> str:
        return type(self).__name__

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, **kwargs: Any
    ) -> TrtVae:
        """`load_vae` for a diffusers folder: `engine_dir` ("engines") and its other arguments are
        taken too.
        """
        source = str(pretrained_model_name_or_path or DEFAULT_MODEL)
        subfolder = kwargs.get("subfolder")
        if subfolder and Path(source).is_dir():  # of a hub id, `load_model` finds it
            source = str(Path(source) / subfolder)
        taken = inspect.signature(load_vae).parameters.keys() - {"engine_dir", "model", "dtype"}
        return load_vae(
            kwargs.get("engine_dir", "engines"),
            model=source,
            dtype=kwargs.get("torch_dtype") or kwargs.get("dtype"),
            **{name: kwargs[name] for name in taken & kwargs.keys()},
        )

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write the diffusers VAE that this one stands for, as that would; engines stay put."""
        self._model[0].vae.save_pretrained(save_directory, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> TrtVae:
        """A VAE with a place and attributes of its own, on the same engines and weights."""
        twin = type(self).__new__(type(self))
        memo.update({id(self): twin, id(self._ladder): self._ladder, id(self._model): self._model})
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def __copy__(self) -> TrtVae:
        return copy.deepcopy(self)

    def __reduce__(self) -> tuple[Any, ...]:
        model = self._model[0]
        if not model.source:
            raise UsageError(
                "the VAE cannot be pickled: its weights have no name by which to load them again",
                fix="vae.save_pretrained(FOLDER), and pickle load_vae(..., model=FOLDER)",
            )
        switches = {k: v for k, v in vars(self).items() if k.startswith(("use_", "tile_sample_"))}
        place = {"device": str(self.device), "dtype": self.dtype}
        made_of = self._ladder.engines, self._ladder.settings
        return _load_again, (model.source, model.weights_sha256, *made_of, place, switches)

    @property
    def dtype(self) -> torch.dtype:
        return self._place.dtype

    @property
    def device(self) -> torch.device:
        return self._place.device

    # diffusers' own layers, on this device and in this dtype, for callers that take the VAE apart.
    # No engine has a part in them.
    encoder = property(lambda self: self._shipped().encoder, doc="Of diffusers.")
    decoder = property(lambda self: self._shipped().decoder, doc="Of diffusers.")
    quant_conv = property(lambda self: self._shipped().quant_conv, doc="Of diffusers.")
    post_quant_conv = property(lambda self: self._shipped().post_quant_conv, doc="Of diffusers.")

    def _shipped(self) -> AutoencoderKLQwenImage:
        return self._ladder.pytorch.shipped(self.device, self.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> TrtVae:
        before = self.device
        super()._apply(fn, recurse)
        if self.device != before:
            # Off the device (model offload moves it after every use): what is large there goes.
            self._ladder.leave_device()
        return self

    @apply_forward_hook
    @torch.compiler.disable
    def encode(
        self, x: torch.Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Pictures → the distribution of their latents, un-normalised.

        Args:
            x: (B, C, 1, H, W) in [-1, 1], any floating dtype; T > 1 frames go through diffusers'
                own VAE, where that takes them.
            return_dict: False returns a tuple.

        Returns:
            `.latent_dist`, of shape (B, z, 1, H/s, W/s), with s = `kind.scale`: all 2z moments are
            there, in x's dtype.

        Raises:
            UsageError: not such a tensor.
            QvaeError: with `fallback="raise"`, why no engine serves it.
        """
        posterior = DiagonalGaussianDistribution(self._ladder.serve("encoder", x, **self._how()))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook
    @torch.compiler.disable
    def decode(
        self, z: torch.Tensor, return_dict: bool = True
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Latents → pictures.

        Args:
            z: (B, z, 1, h, w), un-normalised, any floating dtype; T > 1 frames as in
                `encode`.
            return_dict: False returns a tuple.

        Returns:
            `.sample`: (B, C, 1, s h, s w) in [-1, 1], in z's dtype, owned by the caller.

        Raises:
            As `encode`.
        """
        sample = self._ladder.serve("decoder", z, **self._how())
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(
        self,
        sample: torch.Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Encode and decode."""
        posterior = self.encode(sample, return_dict=False)[0]
        latents = posterior.sample(generator=generator) if sample_posterior else posterior.mode()
        return self.decode(latents, return_dict=return_dict)

    def enable_tiling(
        self,
        tile_sample_min_height: int | None = None,
        tile_sample_min_width: int | None = None,
        tile_sample_stride_height: int | None = None,
        tile_sample_stride_width: int | None = None,
    ) -> None:
        """Cut what is larger than a tile into overlapping tiles, each served by an engine of its
        size if there is one.

        Without arguments: tiles of 1024x1024 pixels every 896. A side without a stride overlaps by
        a quarter, up to 128 pixels. Memory running out needs no such call: PyTorch then tiles by
        itself.

        Raises:
            UsageError: no whole number of pixels, a side under one latent's, or a stride that is
                not from 1 to the side: tiles would leave gaps.
        """
        wanted: dict[str, int] = {}
        for name, side, stride in (
            ("height", tile_sample_min_height, tile_sample_stride_height),
            ("width", tile_sample_min_width, tile_sample_stride_width),
        ):
            if side is not None:
                wanted[f"tile_sample_min_{name}"] = side
                if arguments.whole(side):
                    wanted[f"tile_sample_stride_{name}"] = side - usual_overlap(side)
            if stride is not None:
                wanted[f"tile_sample_stride_{name}"] = stride
        self._tile({**vars(self), **wanted})
        self.__dict__.update(wanted, use_tiling=True)

    def warm_up(self, *sizes: tuple[int, int], parts: Sequence[Part] = PARTS) -> None:
        """Load what serves these sizes and run it, so that the first picture takes no longer than
        the next.

        Args:
            sizes: (height, width) in pixels.
            parts: which halves.

        Raises:
            UsageError: other sizes or parts. Else as `encode`.
        """
        shapes: list[tuple[Part, tuple[int, ...]]] = []
        scale = self.kind.scale
        for height, width in map(arguments.sides, sizes):
            of_latents = (1, self.z_dim, 1, height // scale, width // scale)
            for part in parts:
                arguments.check_word("the part", part, PARTS)
                of_pixels = (1, self.input_channels, 1, height, width)
                shapes.append((part, of_pixels if part == "encoder" else of_latents))
        # A static engine is captured at its second run on the scratch memory of the largest size.
        for _ in range(3 if self._ladder.engines.cuda_graphs else 1):
            for part, shape in shapes:
                zeros = torch.zeros(shape, device=self.device, dtype=self.dtype)
                with torch.no_grad():
                    self._ladder.serve(part, zeros, **self._how())

    def choice(self, part: Part, resolution: Resolution) -> Choice:
        """Which engine serves a size, with the reason for each candidate;
        `print(choice.explain())`.

        Raises:
            UsageError: no such part, or no `Resolution`.
        """
        if not isinstance(resolution, Resolution):
            raise UsageError(
                f"got the size {resolution!r}, expected a qvae_trt.Resolution",
                fix='qvae_trt.Resolution.parse("1664x928"), or Resolution(height=928, width=1664)',
            )
        arguments.check_word("the part", part, PARTS)
        # An offloaded VAE rests on the CPU; accelerate's hook moves it before each call.
        hook = getattr(self, "_hf_hook", None)
        device = getattr(hook, "execution_device", None)
        place = self.device if device is None else torch.device(device)
        return self._ladder.choice(part, resolution, place)

    def release_memory(self, *, engines: bool = True) -> None:
        """Give memory back: scratch to PyTorch's allocator, PyTorch's copies of the weights, and
        the engines that nobody is using. What failed may be tried again; the next call loads anew.

        Args:
            engines: False keeps the engines loaded.
        """
        if engines:
            self._ladder.release()
        else:
            self._ladder.leave_device()

    def memory(self) -> dict[str, int]:
        """How many engines are loaded, and what they and the shared scratch hold, in bytes."""
        devices = self._ladder.engines.loaded().values()
        sizes = [size for engines, _ in devices for _, size in engines]
        scratch = sum(scratch for _, scratch in devices)
        return {"engines": len(sizes), "engine_bytes": sum(sizes), "scratch_bytes": scratch}

    def status(self) -> dict[str, Any]:
        """What operators ask, as plain values (JSON takes them), without waiting for the device.

        Of what served and of the reasons, the 256 that came last are kept, and counted since this
        VAE was made.

        Returns:
            `device`, `dtype`, and lists of dicts: `served` (`part`, `size` as WxH, `by`: `static`,
            `profiles`, `fused`, `folded`, `pytorch` for video, `tiles`; `calls`), one call a
            picture or tile; `fallbacks` (`where`, `instead`: what served, None where the error was
            raised; `reason`, `calls`); `engines` that are loaded (`path`, `device`, `bytes`).
            `memory`: of each device `engine_bytes`, `scratch_bytes`, and `pytorch_bytes`, which are
            all that PyTorch's tensors hold there, scratch with them.
        """
        place = {"device": str(self.device), "dtype": str(self.dtype).removeprefix("torch.")}
        return place | self._ladder.status(self.device)

    def __repr__(self) -> str:
        status = self.status()
        calls: dict[str, int] = {}
        for served in status["served"]:
            calls[served["by"]] = calls.get(served["by"], 0) + served["calls"]
        served_by = ", ".join(f"{by} {count}" for by, count in calls.items()) or "nothing yet"
        fallbacks = sum(fallback["calls"] for fallback in status["fallbacks"])
        mib = sum(engine["bytes"] for engine in status["engines"]) / 2**20
        return (
            f"TrtVae({status['device']}, {status['dtype']}; served: {served_by};"
            f" fallbacks: {fallbacks}; engines: {len(status['engines'])}, {mib:.0f} MiB)"
        )

    def _how(self) -> dict[str, Any]:
        """Where and how `Ladder.serve` is to serve."""
        # Read anew at each use: as diffusers' own, these attributes may be set one by one.
        tile = self._tile(vars(self)) if self.use_tiling else None
        return {"device": self.device, "dtype": self.dtype, "tile": tile}

    def _tile(self, attributes: Mapping[str, Any]) -> Tile:
        """The tile that `tile_sample_…` describe. UsageError if they describe none."""
        tile: dict[str, int] = {}
        for axis in ("height", "width"):
            side = attributes[f"tile_sample_min_{axis}"]
            stride = attributes[f"tile_sample_stride_{axis}"]
            if not (arguments.whole(side) and arguments.whole(stride)):
                raise UsageError(
                    f"tiles of {side!r} pixels every {stride!r}: expected whole numbers"
                )
            if side < self.kind.scale or not 1 <= stride <= side:
                raise UsageError(
                    f"tiles of {side} pixels every {stride}: expected a side of"
                    f" {self.kind.scale} or more, and a stride from 1 to that side",
                    fix="give enable_tiling the sides alone, and it chooses the strides",
                )
            tile |= {axis: side, f"overlap_{axis}": side - stride}
        return Tile(**tile)


def _load_again(
    source: str,
    weights_sha256: str,
    engines: Engines,
    settings: Settings,
    place: dict[str, Any],
    switches: dict[str, Any],
) -> TrtVae:
    """What a pickled VAE becomes.

    Raises:
        ModelError: the weights cannot be had, or are not those of the VAE that was pickled.
    """
    model = load_model(source)
    if model.weights_sha256 != weights_sha256:
        raise ModelError(
            f"{source}: other weights than those of the VAE that was pickled: found SHA-256"
            f" {model.weights_sha256[:12]}…, expected {weights_sha256[:12]}…",
            fix="vae.save_pretrained(FOLDER), and pickle load_vae(..., model=FOLDER)",
        )
    vae = TrtVae(model, engines, settings, **place)
    vae.__dict__.update(switches)
    return vae


def load_vae(
    engine_dir: str | os.PathLike[str] | None,
    *,
    model: str | os.PathLike[str] | Model = DEFAULT_MODEL,
    fallback: FallbackMode = "warn",
    backend: str | Backend = "auto",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    memory_budget_bytes: int | None = None,
    check_nan: bool = False,
    cuda_graphs: bool = False,
    allow_foreign: bool = False,
    prefer: Prefer = "engine",
) -> TrtVae:
    """The VAE of a Qwen-Image pipeline, also of 2.1, run by engines:
    `pipe.vae = qvae_trt.load_vae("engines")`.

    Args:
        engine_dir: where `qvae build` put the engines. They are opened when first needed. None:
            no engines, the fused path serves every size.
        model: whose weights: a hub id (by default `Qwen/Qwen-Image`), a folder, a `.safetensors`,
            `bundled:tiny`, `random:full`, or a loaded `Model`.
        fallback: where neither an engine nor the fused path serves: `warn` once for each size and
            reason and use the folded network, or `silent`ly use it. `raise` the reason where no
            engine serves, or, without an engine folder, where the fused path does not.
        backend: `auto`, `tensorrt`, `tensorrt_rtx`, `onnxruntime`.
        device: where it is at first; without one, CUDA if there is any (and the backend named runs
            there), else the CPU.
        dtype: at first; without one, bfloat16 on CUDA and float32 on the CPU.
        memory_budget_bytes: past this the least recently used engines are closed; None keeps all.
        check_nan: look at every result, and treat NaN or infinity as a failed run. Waits for the
            device.
        cuda_graphs: capture one CUDA graph for each engine, of the size that it runs several times
            in a row, and for each size of the fused path up to 768x768 pixels. For graphs that you
            capture yourself see `TrtVae`.
        allow_foreign: load engines without a sidecar. Deserialising runs code: only those one has
            built.
        prefer: where an engine and the fused path could serve: the `engine`, or the `fastest` by
            what `qvae bench` measured with this folder on this machine.

    Raises:
        ModelError: the weights cannot be had.
        BackendError: with `fallback="raise"`, the backend is absent or cannot run here.
        UsageError: an argument of another kind: an unknown fallback or backend, a folder of the
            engines of one mode, a device that is not there, a budget that is not a number of bytes.
    """
    # Before the weights are read.
    arguments.check_word("fallback", fallback, get_args(FallbackMode))
    arguments.check_word("prefer", prefer, get_args(Prefer))
    model = os.fspath(model) if isinstance(model, os.PathLike) else model
    if not isinstance(model, str | Model):
        raise UsageError(
            f"the model is a {type(model).__name__}, expected a hub id, a path or a qvae_trt Model",
            fix="save it with save_pretrained, and give the folder",
        )
    budget = memory_budget_bytes
    if budget is not None and (type(budget) is not int or budget < 0):
        raise UsageError(f"memory_budget_bytes is {budget!r}, expected a number of bytes")
    if not isinstance(backend, str) and not hasattr(backend, "can_run"):
        raise UsageError(f"the backend is {backend!r}, expected a name such as 'auto'")
    folder = None if engine_dir is None else arguments.named_folder(engine_dir)
    folders = {} if folder is None else arguments.mode_folders(folder)
    loaded = load_model(arguments.lasting_source(model)) if isinstance(model, str) else model
    engines = Engines(
        folders,
        backend=backend,
        weights_sha256=loaded.weights_sha256,
        vae=loaded.kind.name,
        budget_bytes=memory_budget_bytes,
        allow_foreign=allow_foreign,
        cuda_graphs=cuda_graphs,
    )
    if device is None and backend != "auto" and engines.device_type == "cpu":
        device = "cpu"
    times = None
    if prefer == "fastest" and folder is not None:
        times = measured_here(folder, engines.adapter)
    settings = Settings(fallback=fallback, check_nan=check_nan, measured=times)
    return TrtVae(loaded, engines, settings, device=device, dtype=dtype)


def machine_here(backend: Backend | None) -> dict[str, str]:
    """What a measured time holds for: GPU, PyTorch and what runs the engines."""
    facts = {"torch": str(torch.__version__)}
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    if backend is not None:
        facts[backend.name] = backend.version()
    return facts


def measured_here(folder: Path, backend: Backend | None) -> measured.Measured | None:
    """What `qvae bench` measured with the engines of a folder; None, with a warning, where it was
    on another machine, or never.
    """
    path, machine = folder / measured.FILE_NAME, machine_here(backend)
    try:
        times = measured.load(path)
        if times.machine == machine:
            return times
        why = f"{path}: measured with {times.machine}, expected {machine}"
    except StoreError as error:
        why = error.what
    text = f"prefer='fastest' takes engines first: {why}\n  fix: qvae bench --resolution WxH"
    warnings.warn(text, UserWarning, stacklevel=3)
    return None
