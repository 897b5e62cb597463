"""`qvae inspect ENGINE`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qvae_trt.cli import output
from qvae_trt.cli.drawing import tree
from qvae_trt.cli.options import JsonOption, VerboseOption
from qvae_trt.errors import ForeignEngineError


def inspect(
    engine: Annotated[
        Path, typer.Argument(metavar="ENGINE", help="An engine file, .trt or .onnx.")
    ],
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """What an engine file is: key, profiles, layers, memory."""
    from qvae_trt import backends, store

    sidecar = None
    try:
        sidecar = store.check_engine(engine)
    except ForeignEngineError as error:
        output.tell(f"warning: {error}", style="yellow")
    backend = backends.for_engine(engine, sidecar)
    runnable = backend.can_run()
    data: dict[str, object] = {"path": str(engine), "bytes": engine.stat().st_size}
    if sidecar is not None:
        data["sidecar"] = sidecar.to_dict()
    if runnable.ok:
        data["engine"] = backend.inspect(engine)
    else:
        output.tell(
            f"warning: not opened, its sidecar alone is shown: {runnable.reason}", style="yellow"
        )
    output.emit(data, lambda: tree(str(engine), data))
