"""Checks of callers' arguments, with errors that say what is wrong."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from numbers import Integral
from pathlib import Path

import torch

from qvae_trt.errors import UsageError
from qvae_trt.model import existing_path
from qvae_trt.profiles import MODES, Mode, Resolution


def check_word(name: str, word: object, words: Sequence[str]) -> None:
    """UsageError unless it is one of these words."""
    if word not in words:
        raise UsageError(f"{name} is {word!r}, expected one of {', '.join(words)}")


def named_folder(path: str | os.PathLike[str]) -> Path:
    """The absolute path of a folder as a user wrote it, also where the process changes directory
    later.

    Raises:
        UsageError: no such user (`~name`), a relative path where there is no current folder, or no
            path at all.
    """
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise UsageError(f"the engine folder is {str(path)!r}: no such user") from error
    except OSError as error:
        raise UsageError(
            f"the engine folder is {str(path)!r}, and the current folder is gone: {error.strerror}"
        ) from error
    except TypeError as error:
        raise UsageError(f"the engine folder is {path!r}, expected a path") from error


def lasting_source(model: str) -> str:
    """The name of a model; a path becomes absolute, as the process may change directory later."""
    path = existing_path(model)
    return model if path is None else str(path.absolute())


def mode_folders(engine_dir: Path) -> dict[Mode, Path]:
    """The folders of both modes in an engine folder.

    Raises:
        UsageError: it is the folder of one mode, expected the folder above.
    """
    folders: dict[Mode, Path] = {mode: engine_dir / mode for mode in MODES}
    with suppress(OSError):
        if not any(folder.is_dir() for folder in folders.values()) and any(
            engine for pattern in ("vae_*", "*/vae_*") for engine in engine_dir.glob(pattern)
        ):
            raise UsageError(
                f"{engine_dir} holds engines itself, expected the folder above, which holds"
                f" {' and '.join(MODES)}",
                fix=f"load_vae({str(engine_dir.parent)!r})",
            )
    return folders


def sides(size: object) -> tuple[int, int]:
    """(height, width) in pixels."""
    if isinstance(size, Resolution):
        return size.height, size.width
    if isinstance(size, tuple | list) and len(size) == 2:
        height, width = size
        if whole(height) and whole(width) and height > 0 and width > 0:
            return height, width
    raise UsageError(f"got the size {size!r}, expected (height, width) in pixels")


def whole(number: object) -> bool:
    return isinstance(number, Integral)


def empty_on(device: torch.device | str, dtype: object) -> torch.Tensor:
    """An empty tensor on a device. UsageError if the device cannot hold one."""
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise UsageError(f"dtype is {dtype!r}, expected a floating one such as torch.bfloat16")
    try:
        return torch.empty(0, device=device, dtype=dtype)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"device is {str(device)!r}, where no tensor can be: {reason}",
            fix="device='cpu' is always there; qvae doctor lists the GPUs",
        ) from error
