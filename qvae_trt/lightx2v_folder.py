"""The folder that LightX2V's own TensorRT loader opens, made of the engines that are there.

That loader looks at no sidecar, shape, range or type. So an engine that it would run wrongly is
left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qvae_trt import store
from qvae_trt.commands import build_command, rebuild_command
from qvae_trt.errors import EngineError
from qvae_trt.files.writing import RESULTS, place_file, refusals_named
from qvae_trt.lightx2v_loader import static_folders, unheld
from qvae_trt.profiles import BACKENDS, PARTS, Mode, Part, Resolution

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
    engine_dir: Path, out: Path, *, backend: str = "tensorrt", copy: bool
) -> list[Placed]:
    """Put the engines of `engine_dir` that LightX2V's loader runs rightly into `out`, under its
    names, each with its sidecar.

    Args:
        engine_dir: where `qvae build` put them.
        out: the folder to make or bring up to date.
        backend: whose engines.
        copy: files; else relative links.

    Returns:
        Every engine that the loader can ask for. A link or copy made before is removed where the
        engine is not usable any more.

    Raises:
        EngineError: there is no engine folder.
        UsageError: `out` is the engine folder.
        StoreError: the file system refused.
    """
    build = build_command("static", backend=backend, engine_dir=engine_dir)
    store.check_other_folder(engine_dir, out, use="LightX2V's names", name="lightx2v", build=build)
    placed = []
    for part, mode, size, name in _asked_for():
        file = store.engine_file(engine_dir, part, mode, BACKENDS[backend], size)
        engine, path = file.path, out / name / file.path.name
        found: dict[str, Any] = {"status": "copied" if copy else "linked"}
        if not file.is_there:
            sizes = () if size is None else (size,)
            asked = {"part": part, "backend": backend, "engine_dir": engine_dir}
            found = {"status": "missing", "fix": build_command(mode, *sizes, **asked)}
        else:
            try:
                _check(file, backend)
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


def _check(file: store.EngineFile, flavour: str) -> None:
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
            fix=rebuild_command(engine, backend=flavour, force=True),
        )


def _place(source: Path, target: Path, one: Placed) -> None:
    if one.usable:
        place_file(source, target, link=one.status == "linked")
        return
    with refusals_named("write", target, option=RESULTS):
        # A file of somebody else's has no sidecar.
        if target.is_symlink() or store.sidecar_path(one.path).is_file():
            target.unlink(missing_ok=True)
