"""The kinds of VAE that are known, as `profiles/kinds.toml` describes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from qvae_trt.errors import ResolutionError
from qvae_trt.files.values import read_toml
from qvae_trt.json_rows import read
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
        most: of the other whole numbers in the configuration: a damaged file may not ask for
            terabytes.
        flags: what it calls what is true or false.
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
    most: Mapping[str, int]
    flags: tuple[str, ...]
    fixed: Mapping[str, Annotated[Any, lambda value: value.data]]
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


KINDS: tuple[Kind, ...] = read(tuple[Kind, ...], read_toml(own_file("kinds.toml"))["kind"])
QWEN_IMAGE, QWEN_IMAGE_21 = KINDS
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
