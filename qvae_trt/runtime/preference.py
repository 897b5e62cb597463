"""Whether the fused path goes before an engine that could serve too."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal

import torch

from qvae_trt.errors import StoreError
from qvae_trt.store import measured

if TYPE_CHECKING:
    from pathlib import Path

    from qvae_trt.backends import Backend
    from qvae_trt.profiles import Choice, Part

Prefer = Literal["engine", "fastest"]


def machine_here(backend: Backend | None) -> dict[str, str]:
    """What a measured time holds for: GPU, PyTorch and what runs the engines."""
    facts = {"torch": str(torch.__version__)}
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    if backend is not None:
        facts[backend.name] = backend.version()
    return facts


class Preference:
    """Follows what `qvae bench` measured on this machine.

    Args:
        prefer: `engine`, and nothing is read, or `fastest`.
        folder: the engine folder, where `measured.json` is.
        backend: what runs the engines.
    """

    def __init__(self, prefer: Prefer, folder: Path | None, backend: Backend | None) -> None:
        self._measured: measured.Measured | None = None
        if prefer == "engine" or folder is None:
            return
        path = folder / measured.FILE_NAME
        try:
            times = measured.load(path)
        except StoreError as error:
            self._warn(error.what)
            return
        machine = machine_here(backend)
        if times.machine == machine:
            self._measured = times
        else:
            self._warn(f"{path}: measured with {times.machine}, expected {machine}")

    def fused_first(self, part: Part, choice: Choice) -> str | None:
        """Why the fused path goes before the engine of a choice; None if it does not."""
        mode = choice.engine
        if self._measured is None or (mode != "static" and mode != "profiles"):
            return None
        times = self._measured.compare(part, choice.resolution, mode)
        if times is None or times[0] >= times[1]:
            return None
        return f"faster here: {times[0]:.1f} ms, the {mode} engine {times[1]:.1f} ms"

    def _warn(self, why: str) -> None:
        text = f"prefer='fastest' takes engines first: {why}\n  fix: qvae bench --resolution WxH"
        warnings.warn(text, UserWarning, stacklevel=4)
