"""`QvaeImageProcessor`: diffusers' image processor, tensor → PIL on the tensor's device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

#: Modes whose pixels Pillow does not copy out of the array it is given.
_MAPPED_MODES = frozenset({"L", "RGBA"})


class QvaeImageProcessor(VaeImageProcessor):
    """Stands in for `pipe.image_processor`; pictures are bit-identical to VaeImageProcessor's.

    diffusers copies the floats to the host and does the arithmetic there, in NumPy. Here the device
    does it, and one copy brings uint8 pixels through pinned memory: a quarter of the bytes of fp32,
    and none of the host's arithmetic. Everything but `postprocess(..., "pil")` is inherited.
    """

    @classmethod
    def replacing(cls, processor: VaeImageProcessor) -> QvaeImageProcessor:
        """A processor with the configuration of `processor` (a pipeline's own, say)."""
        settings = {k: v for k, v in processor.config.items() if not k.startswith("_")}
        return cls(**settings)

    def postprocess(
        self, image: Any, output_type: str = "pil", do_denormalize: list[bool] | None = None
    ) -> Any:
        """Turn pixels into pictures.

        Args:
            image: tensor (B, C, H, W), floating point, in [-1, 1] (in [0, 1] where it is not to be
                denormalised), on any device; C is 1, 3 or 4 for pictures.
            output_type: "pil", "np", "pt" or "latent".
            do_denormalize: one flag a picture; None takes the configuration's `do_normalize`.

        Returns:
            As diffusers: a list of B pictures for "pil", else an array or a tensor.
        """
        if output_type != "pil" or not isinstance(image, torch.Tensor) or image.ndim != 4:
            return super().postprocess(image, output_type, do_denormalize)
        with torch.no_grad():
            pixels = to_uint8(self._denormalize_conditionally(image, do_denormalize))
            return [_to_picture(pixels_of_one) for pixels_of_one in to_host(pixels)]


def to_uint8(image: Tensor) -> Tensor:
    """(B, C, H, W) in [0, 1] → (B, H, W, C) uint8, contiguous, on the same device.

    Rounds half to even in fp32, as NumPy does for diffusers. Values outside wrap as NumPy's do on
    x86, which goes through int32; a NaN becomes 0.
    """
    scaled = (image.float() * 255).round_().to(torch.int32).to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous()


def to_host(pixels: Tensor) -> np.ndarray:
    """The pixels as an array; of a GPU in pinned memory, to be released soon."""
    if not pixels.is_cuda:
        return pixels.cpu().numpy()
    host = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True)
    host.copy_(pixels, non_blocking=True)
    torch.cuda.current_stream(pixels.device).synchronize()
    return host.numpy()


def _to_picture(array: np.ndarray) -> Image.Image:
    """(H, W, C) uint8 → a picture. No pixel of the array stays in use."""
    picture = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    return picture.copy() if picture.mode in _MAPPED_MODES else picture
