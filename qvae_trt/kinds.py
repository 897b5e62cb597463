"""The kinds of VAE that are known, and all that they differ in, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from qvae_trt.errors import ResolutionError
from qvae_trt.files.values import Value
from qvae_trt.profiles import Profile, Resolution, load_profiles, load_static_sizes, own_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of VAE.

    Attributes:
        name: in messages.
        class_name: of diffusers, which the configuration names.
        stages: how many widths the network has; each but the last halves the sides.
        z_dim: latent channels where a configuration does not say.
        colours: what the configuration calls the number of a picture's channels; where it has
            several names, all must have the same number.
        default_colours: that number where a configuration leaves it out.
        readers: of the other values in the configuration. The bounds of its whole numbers keep a
            damaged file from asking for terabytes.
        fixed: what the configuration must have where it says something.
        step: what its pipelines round the sides of pictures to.
        hub_id: of its weights.
        sizes_file, profiles_file: in `profiles/`.
        video: the class takes more than one frame.
    """

    name: str
    class_name: str
    stages: int
    z_dim: int
    colours: tuple[str, ...]
    default_colours: int
    readers: Mapping[str, Callable[[Value], object]]
    fixed: Mapping[str, object] = field(default_factory=dict)
    step: int
    hub_id: str
    sizes_file: str
    profiles_file: str
    video: bool

    @property
    def scale(self) -> int:
        """How many pixels of a side one latent stands for."""
        return 2 ** (self.stages - 1)

    @property
    def static_sizes(self) -> dict[str, Resolution]:
        """Those that `build` makes where none is named, by aspect."""
        return load_static_sizes(own_file(self.sizes_file))

    @property
    def profiles(self) -> tuple[Profile, ...]:
        return load_profiles(own_file(self.profiles_file))

    def latents_of(self, size: Resolution) -> tuple[int, int]:
        """(height, width) of the latents of a picture.

        Raises:
            ResolutionError: a side is no multiple of `scale`.
        """
        for name, side in (("width", size.width), ("height", size.height)):
            if side % self.scale:
                raise ResolutionError(
                    f"{size}: the {name} is {side}, expected a multiple of {self.scale}, as"
                    f" {self.name} needs",
                    fix=f"the nearest size that it takes is {size.rounded(self.scale)}",
                )
        return size.height // self.scale, size.width // self.scale


def _up_to(most: int) -> Callable[[Value], int | None]:
    return lambda value: None if value.data is None else value.integer(1, most)


_NUMBERS = {"base_dim": _up_to(1024), "z_dim": _up_to(256), "num_res_blocks": _up_to(16)}

QWEN_IMAGE = Kind(
    name="Qwen-Image",
    class_name="AutoencoderKLQwenImage",
    stages=4,
    z_dim=16,
    colours=("input_channels",),
    default_colours=3,
    readers=_NUMBERS,
    fixed={"attn_scales": []},
    step=16,
    hub_id="Qwen/Qwen-Image",
    sizes_file="static.toml",
    profiles_file="nine.toml",
    video=True,
)
QWEN_IMAGE_21 = Kind(
    name="Qwen-Image-2.1",
    class_name="AutoencoderKLQwenImage21",
    stages=5,
    z_dim=64,
    colours=("in_channels", "out_channels"),
    default_colours=4,
    readers={**_NUMBERS, "decoder_base_dim": _up_to(1024), "is_residual": Value.flag},
    fixed={"attn_scales": [], "patch_size": 1, "scale_factor_spatial": 16},
    step=32,
    hub_id="Qwen/Qwen-Image-2.1",
    sizes_file="static-2.1.toml",
    profiles_file="nine-2.1.toml",
    video=False,
)
KINDS = (QWEN_IMAGE, QWEN_IMAGE_21)
_BY_CLASS = {kind.class_name: kind for kind in KINDS}


def kind_named(class_name: object) -> Kind | None:
    """The kind with this class; None if there is none."""
    return _BY_CLASS.get(class_name) if isinstance(class_name, str) else None


def scale_of(latent_channels: int) -> int:
    """Of the kind that has so many: 8 if none has."""
    return next((kind.scale for kind in KINDS if kind.z_dim == latent_channels), QWEN_IMAGE.scale)


def kind_of(vae: object) -> Kind:
    """The kind of a VAE of diffusers."""
    return _BY_CLASS[type(vae).__name__]
