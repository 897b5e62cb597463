"""The model repository that Triton Inference Server opens, made of the engines that are there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qvae_trt import store
from qvae_trt.commands import build_command
from qvae_trt.errors import EngineError
from qvae_trt.files.writing import RESULTS, place_file, refusals_named, write_text
from qvae_trt.profiles import MODES, Mode, Part

if TYPE_CHECKING:
    from qvae_trt.tensors import TensorSpec

Backend = Literal["tensorrt", "onnxruntime"]

_FILES: dict[Backend, tuple[str, str]] = {
    "tensorrt": (".trt", "model.plan"),
    "onnxruntime": (".onnx", "model.onnx"),
}
_TYPES = {"float16": "TYPE_FP16", "bfloat16": "TYPE_BF16", "float32": "TYPE_FP32"}


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
    suffix, file_name = _FILES[backend]
    build = build_command("profiles", engine_dir=engine_dir)
    store.check_other_folder(
        engine_dir, out, use="Triton's models", name="model_repository", build=build
    )
    files = [file for file in store.find_engines(engine_dir) if file.path.suffix == suffix]
    if not files:
        raise EngineError(
            f"{engine_dir}: no engine of {backend}",
            fix=build_command("profiles", backend=backend, engine_dir=engine_dir),
        )
    models = []
    for file in files:
        name = f"qwen_image_vae_{file.part}_{file.resolution or 'profiles'}"
        config, model = out / name / "config.pbtxt", out / name / "1" / file_name
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
            write_text(config, configuration(name, backend, sidecar))
        models.append(
            ServedModel(name=name, part=file.part, mode=file.mode, engine=file.path, **found)
        )
    return models


def configuration(name: str, backend: Backend, sidecar: store.Sidecar) -> str:
    """The config.pbtxt of one engine.

    The batch is a side like the others here, since engines take one picture: max_batch_size is 0.
    """
    lines = [
        f'name: "{name}"',
        f'backend: "{backend}"',
        f'default_model_filename: "{_FILES[backend][1]}"',
        "max_batch_size: 0",
        _tensor("input", sidecar.input),
        _tensor("output", sidecar.output),
    ]
    if backend == "tensorrt" and sidecar.key.mode == MODES[1]:
        # One instance that holds all profiles: Triton gives a request to any idle instance, and
        # only within one does it look for the profile that holds the request's shape.
        indices = json.dumps([str(index) for index in range(len(sidecar.key.profiles))])
        lines.append(f"instance_group [ {{ count: 1 kind: KIND_GPU profile: {indices} }} ]")
        # Else the scratch memory of each profile would be as large as the largest profile's.
        lines.append(
            'parameters { key: "execution_context_allocation_strategy"'
            ' value: { string_value: "ON_PROFILE_CHANGE" } }'
        )
    elif backend == "tensorrt":
        lines.append("instance_group [ { count: 1 kind: KIND_GPU } ]")
    else:
        lines.append("instance_group [ { count: 1 } ]")  # on a GPU where there is one
    return "\n".join(lines) + "\n"


def _tensor(which: str, tensor: TensorSpec) -> str:
    dims = ", ".join(map(str, tensor.shape))
    kind = _TYPES[tensor.dtype]
    return f'{which} [ {{ name: "{tensor.name}" data_type: {kind} dims: [ {dims} ] }} ]'
