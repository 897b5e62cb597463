"""Write the list of a TensorRT's public names, which `fake_tensorrt.py` holds its fake to.

    python tests/api/write_api.py tensorrt_rtx tests/api/rtx171.txt

A line for each name of the module and for each member of its classes, in order. It needs that
release installed, and no GPU.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType


def names(owner: ModuleType | type, path: str = "trt") -> Iterator[str]:
    """The public names of a module or class, and of the classes in it."""
    for name in dir(owner):
        if not name.startswith("_"):
            yield f"{path}.{name}"
            value = getattr(owner, name)
            if inspect.isclass(value):
                yield from names(value, f"{path}.{name}")


if __name__ == "__main__":
    name, out = sys.argv[1:]
    lines = sorted(names(importlib.import_module(name)))
    Path(out).write_text("\n".join(lines) + "\n", encoding="utf-8")
