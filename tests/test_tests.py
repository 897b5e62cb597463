"""The tests mirror the package, and touch little of what it keeps to itself."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import qvae_trt

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(qvae_trt.__file__).parent
TESTS = Path(__file__).parent
MOST_PRIVATE = 10
#: Calls whose text arguments may name an attribute.
BY_NAME = ("setattr", "getattr", "delattr", "hasattr")


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _of_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def _last_name(node: ast.expr) -> str | None:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None)


def defined(tree: ast.AST) -> set[str]:
    """The private names of functions, classes, variables and attributes that a module makes."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _of_self(node):
            found.add(node.attr)
    return {name for name in found if _is_private(name)}


def touched(tree: ast.AST) -> Iterator[str]:
    """The private names that a module takes from elsewhere; `super()` is elsewhere."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not _of_self(node):
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and _last_name(node.func) in BY_NAME:
            for given in node.args:
                if isinstance(given, ast.Constant) and isinstance(given.value, str):
                    yield given.value.rpartition(".")[2]


def private_members(tree: ast.AST, package: set[str]) -> set[str]:
    """Those of the package's private names that a test module touches."""
    own = defined(tree)
    return {name for name in touched(tree) if name in package and name not in own}


def _parsed(folder: Path) -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text("utf-8")) for path in sorted(folder.rglob("*.py"))}


def test_few_private_members_are_touched() -> None:
    package = set().union(*map(defined, _parsed(PACKAGE).values()))
    where: dict[str, list[str]] = {}
    for path, tree in _parsed(TESTS).items():
        for name in private_members(tree, package):
            where.setdefault(name, []).append(path.name)
    assert len(where) <= MOST_PRIVATE, where


@pytest.mark.parametrize(
    "line",
    [
        "vae._ladder.serve()",
        "from qvae_trt.x import _ladder",
        "monkeypatch.setattr(vae, '_ladder', 1)",
        "monkeypatch.setattr('qvae_trt.x._ladder', 1)",
        "super()._ladder(1)",
    ],
)
def test_each_way_to_touch_one_is_seen(line: str) -> None:
    assert private_members(ast.parse(line), {"_ladder"}) == {"_ladder"}


def test_what_a_test_defines_itself_is_its_own() -> None:
    code = "class A:\n    def __init__(self):\n        self._x = 1\n\nassert A()._x == 1"
    assert private_members(ast.parse(code), {"_x"}) == set()


# --- where the tests of a module are --------------------------------------------------------------

#: Test files that are of no one module: of the project, and of ways through all of it.
OF_THE_WHOLE = {
    "contract",
    "docs",
    "docstrings",
    "layers",
    "line_budget",
    "packaging",
    "tests",
}
#: Folders with tests of what is no module of the package.
OF_OTHERS = {"benchmarks", "fuzz", "gpu", "integrations", "mutations"}


def _module_of(test: str, folder: str) -> bool:
    """Whether the name of a test file, less `test_` and its folder, begins with a module's."""
    words = test.split("_")
    names = ("_".join(words[:n]) for n in range(len(words), 0, -1))
    places = (PACKAGE / folder / name for name in names)
    return any(place.is_dir() or place.with_suffix(".py").is_file() for place in places)


def mirrored() -> list[Path]:
    tests = (path.relative_to(TESTS) for path in sorted(TESTS.rglob("test_*.py")))
    return [path for path in tests if path.parts[0] not in OF_OTHERS]


@pytest.mark.parametrize("path", mirrored(), ids=str)
def test_a_test_file_bears_the_name_of_its_module(path: Path) -> None:
    """`tests/store/test_store_writing.py` is of `qvae_trt/store/writing.py`, and so is
    `test_store_writing_locking.py`, of one topic; `tests/store/test_store.py` is of the folder.
    """
    folder = path.parent.as_posix()
    name = path.stem.removeprefix("test_")
    if folder == ".":
        assert name in OF_THE_WHOLE or _module_of(name, folder)
    else:
        assert (PACKAGE / folder).is_dir()
        assert name == folder or name.startswith(f"{folder}_")
        assert name == folder or _module_of(name.removeprefix(f"{folder}_"), folder)


def test_every_folder_of_the_package_has_tests() -> None:
    folders = {path.parent.name for path in PACKAGE.rglob("*.py") if path.parent.parent == PACKAGE}
    assert folders <= {path.parent.as_posix() for path in mirrored()}
