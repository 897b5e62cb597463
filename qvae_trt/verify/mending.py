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

    A command that built from other weights, or for another place, would mend nothing.

    Args:
        force: for an engine that `qvae build` would take to be up to date.
    """
    if sidecar is None:
        backend = "onnxruntime" if engine.path.suffix == ".onnx" else None
        return rebuild_command(engine.path, model=model.source, backend=backend)
    key = sidecar.key
    words = store.words_of(sidecar.command)
    wanted = {**engine.place, "weights_sha256": model.weights_sha256}
    if store.differences(key, wanted) or not _builds_into(words, engine_dir):
        general = rebuild_command(
            engine.path,
            model=model.source,
            backend=key.flavour if key.flavour in BACKENDS else None,
            precision=key.precision,
        )
        words = shlex.split(general)
    if force and "--force" not in words:
        words.append("--force")
    return command_line(words)


def _builds_into(words: list[str], engine_dir: Path) -> bool:
    if words[:2] != ["qvae", "build"]:
        return False
    folder = store.option_in(words, "--engine-dir")
    return Path(folder or "engines").absolute() == engine_dir.absolute()
