"""`qvae inspect ENGINE`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer import Argument

from qvae_trt.cli import output
from qvae_trt.cli.drawing import tree
from qvae_trt.commands import build_command, command_line
from qvae_trt.errors import BackendError, EngineError


def inspect(
    engine: Path = Argument(..., metavar="ENGINE", help="An engine file, .trt or .onnx."),
) -> None:
    """Show what is in an engine file: key, profiles, layers, memory."""
    from qvae_trt.opening import Wanted, check, open_engine

    engine = _engine(engine)
    anything = Wanted(allow_foreign=True)
    sidecar = check(engine, anything)
    data: dict[str, Any] = {"path": str(engine), "bytes": engine.stat().st_size}
    if sidecar is None:
        output.warn("no sidecar says who built this engine or for what")
    else:
        data["sidecar"] = sidecar.to_dict()
    try:
        opened = open_engine(engine, anything)
    except BackendError as error:
        output.warn(f"not opened, only its sidecar is shown: {error.what}")
    else:
        backend = opened.backend
        head = {"backend": backend.name, "version": backend.version()}
        data["engine"] = head | opened.session.inspect()
        opened.session.close()
    output.emit(data, lambda d: tree(d if output.settings.verbose else _short(d)))


def _short(data: dict[str, Any]) -> dict[str, Any]:
    """What fits on a screen: a tensor in one line, a hash's beginning, the number of layers."""
    shown: dict[str, Any] = {}
    for name, value in data.items():
        if name == "layers" and value:
            shown[name] = f"{len(value)}, shown with --verbose"
        elif name in ("input", "output"):
            sides = "x".join(map(str, value["shape"]))
            shown[name] = f"{value['name']}, {value['dtype']}, {sides}"
        elif name.endswith("sha256") and isinstance(value, str):
            shown[name] = f"{value[:16]}…"
        else:
            shown[name] = _short(value) if isinstance(value, dict) else value
    return shown


def _engine(path: Path) -> Path:
    """The engine file that is meant: for a sidecar, the engine beside it. For a folder, an error
    that names an engine in it.
    """
    if path.suffix == ".json" and path.with_suffix("").is_file():
        return path.with_suffix("")
    if path.is_dir():
        engines = sorted(
            file
            for depth in ("", "*/", "*/*/")
            for suffix in ("trt", "onnx")
            for file in path.glob(f"{depth}*.{suffix}")
        )
        raise EngineError(
            f"{path}: is a directory, expected an engine file",
            fix=f"for example: {command_line(['qvae', 'inspect', str(engines[0])])}"
            if engines
            else build_command("static", engine_dir=path),
        )
    return path
