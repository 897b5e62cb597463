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
    from collections.abc import Iterator

PACKAGE = Path(qvae_trt.__file__).parent
LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "errors",
        "interrupts",
        "profiles",
        "kinds",
        "lightx2v_loader",
        "toml_file",
        "json_file",
        "regular_file",
        "workplace",
    ),
    ("store", "backends", "workers"),
    ("model", "folding", "lowerings", "images", "fused", "runtime"),
    (
        "export",
        "build",
        "verify",
        "bench",
        "report",
        "doctor",
        "pictures",
        "tune",
        "lightx2v_folder",
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
    """The modules that a module imports, by their full names."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in _walk(ast.parse(path.read_text("utf-8")), functions=functions):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            found.add(base)
            found.update(
                f"{base}.{alias.name}" for alias in node.names if f"{base}.{alias.name}" in MODULES
            )
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "importlib.import_module",
            "import_module",
            "__import__",
        ):
            argument = node.args[0]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                found.add(argument.value)
    return found


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


@pytest.mark.parametrize("module", MODULES)
def test_libraries_stay_in_their_homes(module):
    for other in _imports(module):
        homes = HOMES.get(other.partition(".")[0])
        assert homes is None or _top(module) in homes, f"{module} imports {other}"


LIGHT = [m for m in MODULES if _top(m) in (*LAYERS[0], "store", "cli", "backends", "workers")]


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
    assert {name for name in loaded if name.startswith("qvae_trt")} == {
        "qvae_trt",
        "qvae_trt.errors",
    }
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
