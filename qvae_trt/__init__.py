"""A faster Qwen-Image VAE: TensorRT engines, and fused kernels that need no build.

Public names are resolved at first use: `import qvae_trt` imports neither torch nor TensorRT.

>>> import qvae_trt
>>> qvae_trt.Resolution.parse("1664x928")
Resolution(height=928, width=1664)
>>> print(qvae_trt.load_static_sizes()["16:9"])
1664x928
>>> len(qvae_trt.load_profiles())
9
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from qvae_trt import errors
from qvae_trt.errors import *  # noqa: F403  the names in its `__all__`
from qvae_trt.version import __version__

if TYPE_CHECKING:
    from qvae_trt.profiles import Profile, Resolution, load_profiles, load_static_sizes
    from qvae_trt.runtime.image_processor import QvaeImageProcessor
    from qvae_trt.runtime.lightx2v import from_lightx2v_config
    from qvae_trt.runtime.vae import TrtVae, load_vae

#: The module of each public name that is not imported here.
_HOMES = {
    "Profile": "profiles",
    "QvaeImageProcessor": "runtime.image_processor",
    "Resolution": "profiles",
    "TrtVae": "runtime.vae",
    "from_lightx2v_config": "runtime.lightx2v",
    "load_profiles": "profiles",
    "load_static_sizes": "profiles",
    "load_vae": "runtime.vae",
}

__all__ = ["Profile", "QvaeImageProcessor", "Resolution", "TrtVae", "__version__"]
__all__ += ["from_lightx2v_config", "load_profiles", "load_static_sizes", "load_vae"]
__all__ += errors.__all__


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'qvae_trt' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"qvae_trt.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
