"""A ComfyUI node: a VAE and a folder of engines → a VAE that runs them.

Link or copy this folder into ComfyUI's `custom_nodes`, and install qvae-trt into its Python.
"""

from __future__ import annotations

import copy
import logging
import os
from pathlib import Path
from typing import Any

import torch
from comfy import model_management
from comfy.model_patcher import ModelPatcher

import qvae_trt
from qvae_trt import store
from qvae_trt.errors import EngineError, ForeignEngineError, UsageError
from qvae_trt.model import Model, model_of_tensors

log = logging.getLogger(__name__)

#: What a served call takes beside weights, at most, as measured: see docs/en/memory.md.
BYTES_PER_PIXEL = 1000


class ServedVae(torch.nn.Module):
    """What a ComfyUI VAE has as its `first_stage_model`: single frames of a size that an engine or
    the fused path holds are theirs, all else is the stock VAE's.

    Args:
        stock: the ComfyUI VAE that this one was made from.
        vae: the same weights, by `qvae_trt.load_vae`.
        expected_bytes: of the engines that one picture there and back needs.
    """

    def __init__(self, stock: Any, vae: qvae_trt.TrtVae, *, expected_bytes: int) -> None:
        super().__init__()
        # In tuples, so that ComfyUI counts and moves neither: the stock VAE has a patcher of its
        # own, and engines are where they are.
        self._stock, self._vae = (stock,), (vae,)
        self.expected_bytes = expected_bytes
        self._told: set[tuple[str, str]] = set()

    def encode(self, x: torch.Tensor, **options: Any) -> torch.Tensor:
        """(B, C, T, H, W) in [-1, 1] → the mean of the latents, (B, 16, t, H/8, W/8)."""
        if not options and self.serves("encoder", x.shape):
            return self._vae[0].encode(x).latent_dist.mode()
        return self._by_stock("encode", x, options)

    def decode(self, z: torch.Tensor, **options: Any) -> torch.Tensor:
        """Un-normalised (B, 16, t, h, w) → (B, C, T, 8h, 8w) in [-1, 1]."""
        if not options and self.serves("decoder", z.shape):
            return self._vae[0].decode(z, return_dict=False)[0]
        return self._by_stock("decode", z, options)

    def serves(self, part: str, shape: torch.Size) -> bool:
        """Whether an engine or the fused path holds this; the first answer for a size is logged."""
        if len(shape) != 5 or shape[2] != 1:
            return False
        side = 1 if part == "encoder" else 8
        size = qvae_trt.Resolution(shape[3] * side, shape[4] * side)
        choice = self._vae[0].choice(part, size)
        served = choice.engine != "folded"
        if (part, str(size)) not in self._told:
            self._told.add((part, str(size)))
            by = choice.engine if served else f"the VAE it was made from\n{choice.explain()}"
            log.info("qvae: %s %s by %s", part, size, by)
        return served

    def bytes_held(self) -> int:
        """On the device, now."""
        return sum(n for name, n in self._vae[0].memory().items() if name.endswith("_bytes"))

    def release(self, *, engines: bool) -> None:
        self._vae[0].release_memory(engines=engines)

    def _by_stock(self, call: str, x: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        stock = self._stock[0]
        need = getattr(stock, f"memory_used_{call}")(x.shape, stock.vae_dtype)
        model_management.load_models_gpu([stock.patcher], memory_required=need)
        return getattr(stock.first_stage_model, call)(x.to(stock.vae_dtype), **options)


class EnginePatcher(ModelPatcher):
    """Tells ComfyUI what the engines hold on the device, and gives it back when asked to."""

    model: ServedVae

    def model_size(self) -> int:
        return max(self.model.bytes_held(), self.model.expected_bytes)

    def loaded_size(self) -> int:
        return self.model.bytes_held()

    def partially_load(self, device_to: torch.device, *_: Any, **__: Any) -> int:
        """Nothing: an engine is opened when a picture needs it."""
        self.model.device = device_to
        return 0

    def partially_unload(
        self, _device_to: torch.device, memory_to_free: int = 0, *_: Any, **__: Any
    ) -> int:
        """Scratch memory goes first; engines only if that was not enough."""
        held = self.model.bytes_held()
        self.model.release(engines=False)
        if held - self.model.bytes_held() < memory_to_free:
            self.model.release(engines=True)
        return held - self.model.bytes_held()

    def detach(self, unpatch_all: bool = True) -> ServedVae:
        if unpatch_all:
            self.model.release(engines=True)
            self.model.device = self.offload_device
        return self.model


def served(stock: Any, engine_dir: str, backend: str = "auto") -> Any:
    """A ComfyUI VAE like `stock` whose single frames engines run.

    Raises:
        QvaeError: it is no VAE of the Qwen-Image family, the folder is not there, or an engine in
            it is of other weights.
    """
    stock.throw_exception_if_invalid()
    if not hasattr(stock, "not_video"):
        raise UsageError("this ComfyUI is too old: its VAE has no not_video", fix="update ComfyUI")
    if isinstance(stock.first_stage_model, ServedVae):
        raise UsageError("the VAE has engines already", fix="connect the one of the Load VAE node")
    model = model_of_tensors(stock.get_sd(), where="the VAE")
    folder = Path(engine_dir).expanduser() if engine_dir.strip() else None
    vae = qvae_trt.load_vae(folder, model=model, backend=backend, device=stock.device)
    expected = 0 if folder is None else _checked_bytes(folder, model)
    made = copy.copy(stock)
    made.first_stage_model = ServedVae(stock, vae, expected_bytes=expected).eval()
    made.patcher = EnginePatcher(
        made.first_stage_model,
        load_device=stock.patcher.load_device,
        offload_device=stock.patcher.offload_device,
    )
    # Results have the dtype of the input: bfloat16 would round pictures on their way in and out.
    made.vae_dtype = torch.float32
    made.not_video = True  # a batch of pictures is encoded picture by picture, not as a video
    for call, part, scale in (("encode", "encoder", 1), ("decode", "decoder", 64)):
        setattr(
            made, f"memory_used_{call}", _memory_used(made.first_stage_model, call, part, scale)
        )
    return made


def _memory_used(model: ServedVae, call: str, part: str, scale: int) -> Any:
    stock = model._stock[0]

    def used(shape: torch.Size, _dtype: torch.dtype) -> int:
        if model.serves(part, shape):
            return BYTES_PER_PIXEL * shape[3] * shape[4] * scale
        return getattr(stock, f"memory_used_{call}")(shape, stock.vae_dtype)

    return used


def _checked_bytes(folder: Path, model: Model) -> int:
    """The bytes of the largest engine of each part, all of which have to be of these weights."""
    if not folder.is_dir():
        raise EngineError(
            f"{folder}: no such folder",
            fix="qvae build --model FILE, FILE being the VAE's, makes it; or leave it empty for the"
            " fused path alone",
        )
    largest: dict[str, int] = {}
    for file in store.find_engines(folder):
        try:
            found = store.read_sidecar(file.path)
        except EngineError as error:  # `choice` names it for the sizes it would have served
            log.warning("qvae: %s", error)
            continue
        if found.key.weights_sha256 != model.weights_sha256:
            raise ForeignEngineError(
                f"{file.path}: of other weights than the VAE: found"
                f" {found.key.weights_sha256[:12]}…, expected {model.weights_sha256[:12]}…",
                fix=f"qvae build --model FILE --engine-dir {folder}, FILE being the VAE's (which"
                " ComfyUI changes where it casts it: not with --fp16-vae)",
            )
        largest[file.part] = max(largest.get(file.part, 0), found.engine_bytes)
    return sum(largest.values())


class QvaeEngines:
    """The node."""

    CATEGORY = "loaders"
    DESCRIPTION = "Runs the Qwen-Image VAE on TensorRT engines of qvae, or on its fused path."
    FUNCTION = "load"
    RETURN_TYPES = ("VAE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "vae": ("VAE",),
                "engine_dir": (
                    "STRING",
                    {
                        "default": os.environ.get("QVAE_ENGINE_DIR", ""),
                        "tooltip": "The folder of qvae build; empty: the fused path alone.",
                    },
                ),
                "backend": (["auto", "tensorrt", "tensorrt_rtx", "onnxruntime"],),
            }
        }

    def load(self, vae: Any, engine_dir: str, backend: str = "auto") -> tuple[Any]:
        return (served(vae, engine_dir, backend),)


NODE_CLASS_MAPPINGS = {"QvaeEngines": QvaeEngines}
NODE_DISPLAY_NAME_MAPPINGS = {"QvaeEngines": "VAE on engines (qvae)"}
