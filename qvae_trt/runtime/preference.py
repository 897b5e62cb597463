"""Whether the fused path goes before an engine that could serve too."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from qvae_trt.errors import StoreError
from qvae_trt.profiles import Choice, Part
from qvae_trt.store import measured

if TYPE_CHECKING:
    from qvae_trt.backends import Backend

Prefer = Literal["engine", "fastest"]


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


def fused_first(times: measured.Measured | None, part: Part, choice: Choice) -> str | None:
    """Why the fused path goes before the engine of a choice; None if it does not."""
    mode = choice.engine
    if times is None or (mode != "static" and mode != "profiles"):
        return None
    found = times.compare(part, choice.resolution, mode)
    if found is None or found[0] >= found[1]:
        return None
    return f"faster here: {found[0]:.1f} ms, the {mode} engine {found[1]:.1f} ms"
