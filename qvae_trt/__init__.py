"""TensorRT engines for the Qwen-Image VAE: export, build, compare, measure, run.

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

from qvae_trt.errors import (
    BackendError,
    BenchError,
    BuildError,
    DeviceMemoryError,
    EngineError,
    ExecutionError,
    ForeignEngineError,
    ModelError,
    ParityError,
    PictureError,
    ProfileError,
    QvaeError,
    ResolutionError,
    StaleEngineError,
    StoreError,
    UsageError,
)
from qvae_trt.version import __version__

if TYPE_CHECKING:
    from qvae_trt.profiles import Profile, Resolution, load_profiles, load_static_sizes
    from qvae_trt.runtime.image_processor import QvaeImageProcessor
    from qvae_trt.runtime.lightx2v import from_lightx2v_config
    from qvae_trt.runtime.vae import TrtVae, load_vae

_HOMES = {
    **dict.fromkeys(
        ("Profile", "Resolution", "load_profiles", "load_static_sizes"), "qvae_trt.profiles"
    ),
    **dict.fromkeys(("TrtVae", "load_vae"), "qvae_trt.runtime.vae"),
    "QvaeImageProcessor": "qvae_trt.runtime.image_processor",
    "from_lightx2v_config": "qvae_trt.runtime.lightx2v",
}

__all__ = [
    "BackendError",
    "BenchError",
    "BuildError",
    "DeviceMemoryError",
    "EngineError",
    "ExecutionError",
    "ForeignEngineError",
    "ModelError",
    "ParityError",
    "PictureError",
    "Profile",
    "ProfileError",
    "QvaeError",
    "QvaeImageProcessor",
    "Resolution",
    "ResolutionError",
    "StaleEngineError",
    "StoreError",
    "TrtVae",
    "UsageError",
    "__version__",
    "from_lightx2v_config",
    "load_profiles",
    "load_static_sizes",
    "load_vae",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'qvae_trt' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
