"""The engines that are there, as other programs open them: the folder of LightX2V's own TensorRT
loader, and the model repository of Triton Inference Server.

LightX2V's loader looks at no sidecar, shape, range or type. So an engine that it would run wrongly
is left out there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qvae_trt import store
from qvae_trt.commands import build_command, rebuild_command
from qvae_trt.errors import EngineError, UsageError
from qvae_trt.files.writing import RESULTS, place_file, refusals_named, write_text
from qvae_trt.lightx2v_loader import static_folders, unheld
from qvae_trt.profiles import PARTS, Mode, Part, Resolution
from qvae_trt.report.templates import render

Backend = Literal["tensorrt", "onnxruntime"]

#: The suffix of its engines, and the name that Triton gives them.
_FILES: dict[Backend, tuple[str, str]] = {
    "tensorrt": (".trt", "model.plan"),
    "onnxruntime": (".onnx", "model.onnx"),
}


def _check_other(engine_dir: Path, out: Path, *, use: str, name: str, build: str) -> None:
    """Whether the engines of `engine_dir` can be put into `out`.

    Args:
        use: what `out` is for.
        name: of a folder that could be `out`.
        build: the command that makes the engine folder.

    Raises:
        EngineError: there is no engine folder.
        UsageError: `out` is the engine folder.
    """
    if not engine_dir.is_dir():
        raise EngineError(f"{engine_dir}: no such folder", fix=build)
    if out.exists() and out.samefile(engine_dir):
        raise UsageError(
            f"{out} is the engine folder: expected another one for {use}",
            fix=f"for example --out {engine_dir.with_name(name)}",
        )


# --- LightX2V -------------------------------------------------------------------------------------

#: Of input and output, as it takes them apart: pixels, 16 latents, their means and log-variances.
_CHANNELS: dict[Part, tuple[int, int]] = {"encoder": (3, 32), "decoder": (16, 3)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """What became of one engine that the loader can ask for.

    Attributes:
        size: what it opens a static engine for; None for one with profiles.
        path: under LightX2V's name.
        engine: ours, which is there or would be.
        reason: why it was refused.
        fix: the command that builds what is missing or was refused.
    """

    status: Literal["linked", "copied", "missing", "refused"]
    part: Part
    mode: Mode
    size: Resolution | None
    path: Path
    engine: Path
    reason: str = ""
    fix: str | None = None

    @property
    def usable(self) -> bool:
        return self.status in ("linked", "copied")


def make_folder(
    engine_dir: Path, out: Path, *, backend: Backend = "tensorrt", copy: bool
) -> list[Placed]:
    """Put the engines of `engine_dir` that LightX2V's loader runs rightly into `out`, under its
    names, each with its sidecar.

    Args:
        engine_dir: where `qvae build` put them.
        out: the folder to make or bring up to date.
        backend: whose engines.
        copy: files; else relative links.

    Returns:
        Every engine that the loader can ask for. A link made before is removed where the engine is
        not usable any more.

    Raises:
        EngineError: there is no engine folder.
        UsageError: `out` is the engine folder.
        StoreError: the file system refused.
    """
    build = build_command("static", engine_dir=engine_dir)
    _check_other(engine_dir, out, use="LightX2V's names", name="lightx2v", build=build)
    placed = []
    for part, mode, size, name in _asked_for():
        file = store.engine_file(engine_dir, part, mode, _FILES[backend][0], size)
        engine, path = file.path, out / name / file.path.name
        found: dict[str, Any] = {"status": "copied" if copy else "linked"}
        if not file.is_there:
            sizes = () if size is None else (size,)
            command = build_command(mode, *sizes, part=part, engine_dir=engine_dir)
            found = {"status": "missing", "fix": command}
        else:
            try:
                _check_for_lightx2v(file, backend)
            except EngineError as error:
                found = {"status": "refused", "reason": error.what, "fix": error.fix}
        placed.append(Placed(part=part, mode=mode, size=size, path=path, engine=engine, **found))
        for beside in (Path, store.sidecar_path):
            _place(beside(engine), beside(path), placed[-1])
    return placed


def configuration(out: Path, mode: Mode) -> dict[str, object]:
    """What LightX2V's configuration says to open the folder."""
    folder = {"trt_engine_path": str((out / mode).absolute()), "multi_profile": mode == "profiles"}
    return {"vae_type": "tensorrt", "trt_vae_config": folder}


def _asked_for() -> Iterator[tuple[Part, Mode, Resolution | None, Path]]:
    """Part, mode, size and folder of all that the loader looks for."""
    for name, size in static_folders().items():
        for part in PARTS:
            yield part, "static", size, Path("static", name)
    for part in PARTS:
        yield part, "profiles", None, Path("profiles")


def _check_for_lightx2v(file: store.EngineFile, flavour: str) -> None:
    """EngineError, with a fix, for an engine that the loader would run wrongly or not at all."""
    engine, part = file.path, file.part
    # Whatever an engine is, its output buffer is fp16.
    expected = {**file.place, "flavour": flavour, "precision": "fp16"}
    sidecar = store.check_engine(engine, expected=expected)
    channels = sidecar.input.shape[1], sidecar.output.shape[1]
    if channels != _CHANNELS[part]:
        wanted = " to ".join(map(str, _CHANNELS[part]))
        raise EngineError(
            f"{engine}: from {channels[0]} channels to {channels[1]}, expected {wanted}",
            fix="qvae_trt.from_lightx2v_config serves such a VAE in LightX2V",
        )
    missed = unheld(sidecar.key.profiles) if file.mode == "profiles" else []
    if missed:
        size, index = missed[0]
        raise EngineError(
            f"{engine}: for {len({size for size, _ in missed})} sizes LightX2V picks a profile that"
            f" does not hold them, such as profile {index} for {size}",
            fix=f"{rebuild_command(engine)} --force (without --profiles)",
        )


def _place(source: Path, target: Path, one: Placed) -> None:
    if one.usable:
        place_file(source, target, link=one.status == "linked")
        return
    with refusals_named("write", target, option=RESULTS):
        if target.is_symlink():
            target.unlink()


# --- Triton ---------------------------------------------------------------------------------------


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
    _check_other(engine_dir, out, use="Triton's models", name="model_repository", build=build)
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
            text = render(
                "config.pbtxt.jinja", model=name, backend=backend, file=file_name, sidecar=sidecar
            )
            write_text(config, text)
        models.append(
            ServedModel(name=name, part=file.part, mode=file.mode, engine=file.path, **found)
        )
    return models
