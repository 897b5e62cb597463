"""The command that builds an engine again."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from qvae_trt import store
from qvae_trt.commands import command_line, rebuild_command
from qvae_trt.profiles import BACKENDS

if TYPE_CHECKING:
    from qvae_trt.model import Model
    from qvae_trt.store import EngineFile, Sidecar


def rebuild(
    engine: EngineFile, sidecar: Sidecar | None, *, engine_dir: Path, model: Model, force: bool
) -> str:
    """The command that built the engine, which knows its level and profiles; else a general one.

    A command that built from other weights, or into another folder, would not help.

    Args:
        force: for an engine that `qvae build` would take to be up to date.
    """
    if sidecar is None:
        backend = "onnxruntime" if engine.path.suffix == ".onnx" else None
        return rebuild_command(engine.path, model=model.source, backend=backend)
    key, words = sidecar.key, store.words_of(sidecar.command)
    wanted = {**engine.place, "weights_sha256": model.weights_sha256}
    folder = store.option_in(words, "--engine-dir") or "engines"
    is_here = words[:2] == ["qvae", "build"] and Path(folder).absolute() == engine_dir.absolute()
    if store.differences(key, wanted) or not is_here:
        backend = key.flavour if key.flavour in BACKENDS else None
        asked = {"model": model.source, "backend": backend, "precision": key.precision}
        words = shlex.split(rebuild_command(engine.path, **asked))
    return command_line([*words, *(["--force"] if force and "--force" not in words else [])])
