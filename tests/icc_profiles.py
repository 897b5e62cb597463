"""ICC profiles as small as they can be: what cameras, screens and printers write into pictures."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

D50 = (0.9642, 1.0, 0.8249)
#: Red, green and blue in XYZ under D50, a row each.
SRGB = np.array(
    [[0.43607, 0.22249, 0.01392], [0.38515, 0.71687, 0.09708], [0.14307, 0.06061, 0.71410]]
)
DISPLAY_P3 = np.array(
    [[0.51512, 0.24120, -0.00105], [0.29198, 0.69225, 0.04189], [0.15710, 0.06657, 0.78407]]
)


def to_linear(values: np.ndarray) -> np.ndarray:
    """The curve of sRGB and Display P3, from what a file holds to light; in [0, 1]."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def from_linear(light: np.ndarray) -> np.ndarray:
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def in_display_p3(srgb: np.ndarray) -> np.ndarray:
    """The same colours, (..., 3) in [0, 1], as a Display P3 file holds them."""
    light = to_linear(srgb) @ SRGB @ np.linalg.inv(DISPLAY_P3)
    return from_linear(light.clip(0, 1))


def display_p3(*, padding: int = 0) -> bytes:
    """Of a screen; with `padding` bytes of another tag."""
    curve = to_linear(np.linspace(0, 1, 1024))
    tags = {f"{name}TRC": _curve(curve) for name in "rgb"}
    tags |= {f"{name}XYZ": _xyz(row) for name, row in zip("rgb", DISPLAY_P3, strict=True)}
    if padding:
        tags["pad "] = b"text" + bytes(4) + np.random.default_rng(0).bytes(padding)
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags)


def grey(gamma: float) -> bytes:
    return _profile(b"mntr", b"GRAY", b"XYZ ", {"kTRC": _curve([gamma * 256 / 65535])})


def printer() -> bytes:
    """Of an ink that is CMYK and prints each colour but white as the same grey."""
    corners = bytearray([128, 128, 128] * 16)
    corners[:3] = 255, 128, 128
    identity = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0])
    table += b"".join(struct.pack(">i", 65536 * (n % 4 == 0)) for n in range(9))
    table += identity * 4 + bytes(corners) + identity * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {"A2B0": table})


def _curve(values: Sequence[float] | np.ndarray) -> bytes:
    data = np.rint(np.asarray(values) * 65535).astype(">u2").tobytes()
    return b"curv" + bytes(4) + struct.pack(">I", len(values)) + data


def _xyz(values: Sequence[float]) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(v * 65536)) for v in values)


def _profile(kind: bytes, space: bytes, connection: bytes, tags: Mapping[str, bytes]) -> bytes:
    text = b"of a test\0"
    described = b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78)
    all_tags = {"desc": described, "wtpt": _xyz(D50), "cprt": b"text" + bytes(4) + text, **tags}
    at = 132 + 12 * len(all_tags)
    entries, body = b"", b""
    for name, data in all_tags.items():
        entries += name.encode() + struct.pack(">II", at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4xI", at + len(body), 0x0210_0000)
    head += kind + space + connection + bytes(12) + b"acsp"
    head = head.ljust(68, b"\0") + _xyz(D50)[8:]
    return head.ljust(128, b"\0") + struct.pack(">I", len(all_tags)) + entries + body
