"""What the small engines of the GPU tests are built for."""

from __future__ import annotations

from qvae_trt.profiles import Profile, Resolution

STATIC = (Resolution(256, 256), Resolution(384, 512), Resolution(448, 320))
WIDE = Profile(Resolution(128, 128), Resolution(320, 320), Resolution(640, 640))
