"""The model repository that Triton Inference Server opens, made of the engines that are there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qvae_trt import store
from qvae_trt.commands import build_command
from qvae_trt.errors import EngineError
from qvae_trt.files.writing import RESULTS, place_file, refusals_named, write_text
from qvae_trt.profiles import BACKENDS, Mode, Part
from qvae_trt.report.templates import render

Backend = Literal["tensorrt", "onnxruntime"]

#: The name that Triton gives an engine.
_FILES: dict[Backend, str] = {"tensorrt": "model.plan", "onnxruntime": "model.onnx"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """What became of one engine.

    Attributes:
        name: by which clients ask for it.
        engine: the file in the engine folder.
        reason: why it was refused; empty for one that is served.
        fix: the command that helps then.
    """

    name: str
    status: Literal["served", "refused"]
    part: Part
    mode: Mode
    engine: Path
    reason: str = ""
    fix: str | None = None


def make_repository(
    engine_dir: Path, out: Path, *, backend: Backend = "tensorrt", link: bool = False
) -> list[ServedModel]:
    """Put each engine of `engine_dir` into `out` as a model of its own, with its configuration.

    Args:
        engine_dir: where `qvae build` put them.
        out: the repository to make or bring up to date. Models of other names in it are left alone.
        backend: Triton's backend that is to run them.
        link: relative links; else copies, which also work where only `out` is mounted.

    Returns:
        Every engine of that backend. A model made before is removed where its engine is refused.

    Raises:
        EngineError: there is no engine folder, or no engine of that backend in it.
        UsageError: `out` is the engine folder.
        StoreError: the file system refused.
    """
    build = build_command("profiles", backend=backend, engine_dir=engine_dir)
    store.check_other_folder(
        engine_dir, out, use="Triton's models", name="model_repository", build=build
    )
    files = [f for f in store.find_engines(engine_dir) if f.path.suffix == BACKENDS[backend]]
    if not files:
        raise EngineError(f"{engine_dir}: no engine of {backend}", fix=build)
    models = []
    for file in files:
        name = f"qwen_image_vae_{file.part}_{file.resolution or 'profiles'}"
        config, model = out / name / "config.pbtxt", out / name / "1" / _FILES[backend]
        found: dict[str, Any] = {"status": "served"}
        try:
            expected = {"flavour": backend, **file.place}
            sidecar = store.check_engine(file.path, expected=expected)
        except EngineError as error:
            found = {"status": "refused", "reason": error.what, "fix": error.fix}
            with refusals_named("remove", model, option=RESULTS):
                for path in (config, model):
                    path.unlink(missing_ok=True)
        else:
            place_file(file.path, model, link=link)
            # In this order: a server that polls finds no configuration without its model.
            text = render(
                "config.pbtxt.jinja", model=name, backend=backend, file=model.name, sidecar=sidecar
            )
            write_text(config, text)
        models.append(
            ServedModel(name=name, part=file.part, mode=file.mode, engine=file.path, **found)
        )
    return models
