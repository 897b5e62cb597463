"""The failures that `qvae` expects, as exceptions.

Every one says what is wrong (found against expected) and, in `fix`, the command or the change that
helps. The command line turns `QvaeError`, and what `expected` makes one of, into a line on stderr
and `exit_code`; any other exception is a bug (exit code 3).
"""

from __future__ import annotations

import errno
import os
import unicodedata
from pathlib import Path

# Of Unicode: control, format, half a surrogate pair, and the separators of lines and paragraphs.
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


class QvaeError(Exception):
    """An expected failure. `str()` is `what`, and `fix` on its own line where there is one.

    Attributes:
        what: what is wrong, with what was found and what was expected.
        fix: the command or the change that helps, or None.
        exit_code: what a command that ends with this error returns.
    """

    exit_code: int = 1

    def __init__(self, what: str, *, fix: str | None = None) -> None:
        self.what = printable(what)
        self.fix = None if fix is None else printable(fix)
        super().__init__(self.what)

    def __str__(self) -> str:
        return self.what if self.fix is None else f"{self.what}\n{self.fix}"


class UsageError(QvaeError):
    """The command or the call was written wrongly."""

    exit_code = 2


class ResolutionError(UsageError):
    """A size that no VAE of this family can take, or no size at all."""


class ProfileError(QvaeError):
    """A missing or malformed TOML file of sizes or profiles; names the file and the line."""


class ModelError(QvaeError):
    """Weights that cannot be found, read, or fitted to the architecture."""


class PictureError(QvaeError):
    """A picture or latents file that cannot be read or written."""


class StoreError(QvaeError):
    """The file system refused: disk full, no permission, lock not granted."""


class BackendError(QvaeError):
    """A backend that is not installed, has no GPU, or cannot do what was asked."""


class BuildError(QvaeError):
    """A backend accepted the job and could not build the engine."""


class EngineError(QvaeError):
    """An engine that is missing, unreadable, corrupt, or asked for a shape outside its ranges."""


class StaleEngineError(EngineError):
    """An engine that differs from its sidecar, or was built for something else than asked for."""


class ForeignEngineError(EngineError):
    """An engine without a sidecar: nothing says who built it, from what, or for which machine."""


class ExecutionError(EngineError):
    """An engine that loaded and then failed while running."""


class DeviceMemoryError(EngineError):
    """The device has too little free memory to load or to run the engine."""


class ParityError(QvaeError):
    """An engine whose pictures differ from PyTorch's by more than a bound."""


class BenchError(QvaeError):
    """A measurement that could not be taken, or results that cannot be read."""


def printable(text: str, *, lines: bool = True) -> str:
    """Text from anywhere as a terminal may print it: a character that would not be seen, and may do
    something instead, becomes `\\x1b`.

    Args:
        lines: line breaks and tabs stay; without it the result is one line.

    >>> print(printable("red: \\x1b[31m"))
    red: \\x1b[31m
    """
    if text.isprintable():
        return text
    return "".join(
        letter.encode("unicode_escape").decode()
        if unicodedata.category(letter) in _UNSEEN and not (lines and letter in "\n\t")
        else letter
        for letter in text
    )


def expected(error: Exception) -> QvaeError | None:
    """The error itself, or what one of a library stands for: memory that ran out, or what the
    system refused. None where it is a bug.
    """
    if isinstance(error, QvaeError):
        return error
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename is not None else ""
        named = isinstance(error.filename, str | os.PathLike)
        folder = str(Path(error.filename).parent) if named else "that folder"
        return StoreError(f"{where}{error.strerror or error}", fix=os_fix(error, folder))
    smaller = "or take a smaller size"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        return QvaeError("out of memory on the host", fix=f"close other programs, {smaller}")
    if out_of_memory(error):
        fix = f"close other programs on it, {smaller}"
        said = ". ".join(str(error).partition("\n")[0].split(". ")[:2])  # the rest is advice
        return DeviceMemoryError(f"out of memory on the GPU: {said}", fix=fix)
    return None


def out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch ran out of memory: its own error on a device, a plain RuntimeError on the
    CPU and where a library of CUDA reports it.
    """
    said = ("DefaultCPUAllocator", "_STATUS_ALLOC_FAILED", "_STATUS_NOT_ENOUGH")
    return type(error).__name__ == "OutOfMemoryError" or (  # torch is not imported for it
        isinstance(error, RuntimeError) and any(words in str(error) for words in said)
    )


def os_fix(error: OSError, folder: Path | str, *, option: str = "") -> str | None:
    """What helps where the system refused something in a folder; `option` names another one."""
    elsewhere = f"or name another folder{': ' if option else ''}{option}"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"free some space, {elsewhere}"
        case errno.EFBIG:
            return f"raise the limit on file sizes (ulimit -f), {elsewhere}"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"let this user read and write {folder}, {elsewhere}"
        case errno.EISDIR | errno.ENOTDIR | errno.ENOTEMPTY | errno.EEXIST | errno.ELOOP:
            return f"move what stands in the way, {elsewhere}"
        case errno.ENAMETOOLONG:
            return f"use a shorter path, {elsewhere}"
        case errno.ENOLCK | errno.ENOSYS | errno.EOPNOTSUPP:
            return f"this file system cannot do that: use another one, {elsewhere}"
        case errno.ENOENT:
            return f"check the path, {elsewhere}"
        case _:
            return None


#: The errors, which the package has too.
__all__ = sorted(name for name in globals() if name.endswith("Error"))
