"""The examples in docstrings do what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import qvae_trt

PACKAGE = Path(qvae_trt.__file__).parent
FILES = [path for path in PACKAGE.rglob("*.py") if ">>> " in path.read_text("utf-8")]


def _module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


@pytest.mark.parametrize("module", sorted(map(_module, FILES)))
def test_examples_in_docstrings(module: str) -> None:
    done = doctest.testmod(importlib.import_module(module))
    assert done.attempted > 0
    assert done.failed == 0


def test_the_package_itself_has_an_example() -> None:
    assert PACKAGE / "__init__.py" in FILES
