"""Imports go down the layers, libraries stay in their homes, and importing the package is light."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import qvae_trt

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PACKAGE = Path(qvae_trt.__file__).parent
# From the bottom up.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("version", "errors", "progress", "interrupts"),
    ("commands", "files", "json_rows"),
    ("profiles",),
    ("tensors", "kinds", "lowerings", "lightx2v_loader"),
    ("store", "workers"),
    ("backends", "model", "images"),
    ("folding", "opening"),
    ("fused",),
    ("runtime", "export"),
    (
        "build",
        "verify",
        "bench",
        "report",
        "doctor",
        "pictures",
        "tune",
        "lightx2v_folder",
        "triton_repository",
    ),
    ("cli",),
)
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}
# Where heavy or optional libraries may be imported, at any depth of a function.
HOMES = {
    "tensorrt": ("backends",),
    "tensorrt_rtx": ("backends",),
    "onnxruntime": ("backends",),
    "triton": ("fused",),
    "polygraphy": ("verify",),
    "typer": ("cli",),
    "rich": ("cli",),
}
HEAVY = ("torch", "diffusers", "transformers", "onnx", "onnxruntime", "onnxscript", "tensorrt")
HEAVY += ("tensorrt_rtx", "polygraphy", "numpy", "PIL", "safetensors", "huggingface_hub")


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def _top(module: str) -> str:
    """`qvae_trt.runtime.vae` -> `runtime`; the package itself and `__main__` -> ``."""
    parts = module.split(".")
    return "" if len(parts) == 1 or parts[1] == "__main__" else parts[1]


def _walk(node: ast.AST, *, functions: bool) -> Iterator[ast.AST]:
    """All nodes, less those for type checkers only, and less functions' bodies if so asked."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in (
            "TYPE_CHECKING",
            "typing.TYPE_CHECKING",
        ):
            continue
        if not functions and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        yield child
        yield from _walk(child, functions=functions)


def _imports(module: str, *, functions: bool = True) -> set[str]:
    """The modules that a module imports, by their full names; a package only for what it defines
    itself, since its modules know it as the folder that they are in.
    """
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in _walk(ast.parse(path.read_text("utf-8")), functions=functions):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names = [f"{base}.{alias.name}" for alias in node.names]
            found.update(name if name in MODULES else base for name in names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "importlib.import_module",
            "import_module",
            "__import__",
        ):
            argument = node.args[0]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                found.add(argument.value)
    return found


def _cycle(imports: Mapping[str, set[str]]) -> list[str]:
    """A circle of modules that import each other, the first one at both ends; none if there is
    none.
    """
    done: set[str] = set()

    def visit(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done:
            return []
        for other in sorted(imports.get(module, ())):
            circle = visit(other, [*way, module])
            if circle:
                return circle
        done.add(module)
        return []

    return next(filter(None, (visit(module, []) for module in imports)), [])


def test_every_module_has_a_layer():
    assert {_top(module) for module in MODULES} - {""} <= set(LAYER_OF)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    if _top(module) == "":
        return  # the package resolves its public names lazily; tested below
    mine = LAYER_OF[_top(module)]
    up = {
        other
        for other in _imports(module)
        if other.startswith("qvae_trt.") and LAYER_OF.get(_top(other), 0) > mine
    }
    assert up == set()


def test_no_module_imports_itself_by_way_of_others():
    assert _cycle({module: _imports(module) for module in MODULES}) == []


def test_no_room_imports_itself_by_way_of_others():
    rooms: dict[str, set[str]] = {room: set() for room in LAYER_OF}
    for module in MODULES:
        if _top(module):
            rooms[_top(module)] |= {_top(o) for o in _imports(module) if o in MODULES}
    assert _cycle({room: others - {room, ""} for room, others in rooms.items()}) == []


def test_a_circle_of_imports_is_found():
    assert _cycle({"a": {"b", "d"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]
    assert _cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("module", MODULES)
def test_nothing_below_imports_the_package_root(module):
    assert "qvae_trt" not in _imports(module)


@pytest.mark.parametrize("module", [m for m in MODULES if _top(m) == "store"])
def test_the_store_does_not_know_backends(module):
    assert {other for other in _imports(module) if _top(other) == "backends"} == set()


@pytest.mark.parametrize("module", MODULES)
def test_libraries_stay_in_their_homes(module):
    for other in _imports(module):
        homes = HOMES.get(other.partition(".")[0])
        assert homes is None or _top(module) in homes, f"{module} imports {other}"


LIGHT_NAMES = (*sum(LAYERS[:5], ()), "cli", "backends")
LIGHT = [m for m in MODULES if _top(m) in LIGHT_NAMES]


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_name_no_heavy_library_at_import(module):
    roots = {other.partition(".")[0] for other in _imports(module, functions=False)}
    assert roots & set(HEAVY) == set()


def _loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(' '.join(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return set(run.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import qvae_trt",
        "import qvae_trt; qvae_trt.Resolution; qvae_trt.QvaeError; qvae_trt.load_profiles()",
        "import qvae_trt.store, qvae_trt.backends, qvae_trt.build",
        "import qvae_trt.cli.app",
    ],
)
def test_importing_is_light(statement):
    assert _loaded_by(statement) & set(HEAVY) == set()


def test_importing_the_package_loads_neither_the_command_line_nor_the_runtime():
    loaded = _loaded_by("import qvae_trt")
    names = {"qvae_trt", "qvae_trt.errors", "qvae_trt.version"}
    assert {name for name in loaded if name.startswith("qvae_trt")} == names
    assert loaded & {"typer", "rich", "fcntl"} == set()


def test_using_the_runtime_loads_no_tool():
    loaded = _loaded_by("import qvae_trt; qvae_trt.load_vae; qvae_trt.from_lightx2v_config")
    tools = {"export", "build", "verify", "bench", "report", "doctor", "cli"}
    assert {
        name for name in loaded if name.startswith("qvae_trt.") and _top(name) in tools
    } == set()
    assert loaded & {"polygraphy", "typer", "tensorrt", "tensorrt_rtx", "onnxruntime"} == set()


# --- public names ---


@pytest.mark.parametrize("name", qvae_trt.__all__)
def test_every_public_name_is_there(name):
    assert getattr(qvae_trt, name) is not None
    assert name in dir(qvae_trt)
