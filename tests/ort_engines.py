"""Small engines of the bundled VAE that run on the CPU, made once for all tests of a session."""

from __future__ import annotations

import fcntl
import os
from functools import lru_cache
from pathlib import Path

from qvae_trt import backends, store
from qvae_trt.export import export_onnx, recipe_sha256
from qvae_trt.files.writing import staged
from qvae_trt.kinds import QWEN_IMAGE
from qvae_trt.lowerings import choose_lowering
from qvae_trt.model import BUNDLED_TINY, Model, load_model
from qvae_trt.profiles import PARTS, Mode, Part, Precision, Profile, Resolution, engine_path
from qvae_trt.tensors import ShapeRange

#: The static pair's size, and the range of the one profile of the other pair.
STATIC = Resolution(64, 96)
WIDE = Profile(Resolution(32, 32), Resolution(64, 64), Resolution(128, 160))
#: Of Qwen-Image-2.1: an eighth of a side is not a latent there, but a sixteenth.
WIDE_21 = Profile(Resolution(48, 48), Resolution(64, 64), Resolution(128, 160))


@lru_cache(maxsize=1)
def tiny() -> Model:
    return load_model(BUNDLED_TINY)


@lru_cache(maxsize=1)
def tiny_21() -> Model:
    return load_model("random:tiny-2.1")


def shape(part: Part, size: Resolution, model: Model | None = None) -> tuple[int, ...]:
    """The input of a part for a picture of this size."""
    return (model or tiny()).shape(part, size)


def shared(tmp_path_factory) -> Path:
    """The engines of `tiny()`, one folder for all test processes of this session. Do not write."""
    return build(base(tmp_path_factory) / "ort-engines")


def shared_21(tmp_path_factory) -> Path:
    """The same of `tiny_21()`."""
    return build(base(tmp_path_factory) / "ort-engines-2.1", tiny_21())


def base(tmp_path_factory) -> Path:
    """Where such folders are: of this session, or where many sessions after each other share it."""
    if given := os.environ.get("QVAE_TEST_ENGINES"):
        return Path(given)
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if os.environ.get("PYTEST_XDIST_WORKER") else folder


def write(
    folder: Path,
    part: Part,
    mode: Mode,
    *profiles: Profile,
    onnx: Path,
    onnx_sha256: str,
    precision: Precision,
    model: Model,
) -> Path:
    """Build one engine of an exported graph, with its sidecar."""
    backend = backends.get("onnxruntime")
    path = engine_path(folder, part, mode, backend.suffix, profiles[0].opt)
    spec = backends.BuildSpec(
        ranges=tuple(
            ShapeRange(*(shape(part, size, model) for size in (p.min, p.opt, p.max)))
            for p in profiles
        ),
        precision=precision,
    )
    with store.lock_engine(path, timeout_s=60), staged(path) as temporary:
        built = backend.build(onnx, temporary, spec)
        sidecar = store.Sidecar(
            key=store.EngineKey(
                **backend.identity(),
                vae=model.kind.name,
                part=part,
                mode=mode,
                precision=precision,
                lowering=choose_lowering("onnxruntime", backend.version(), precision).canonical(),
                profiles=profiles,
                onnx_sha256=onnx_sha256,
                weights_sha256=model.weights_sha256,
                recipe_sha256=recipe_sha256(),
            ),
            input=built.input,
            output=built.output,
        )
        store.write_engine(path, sidecar, temporary)
    return path


def build(
    folder: Path,
    model: Model | None = None,
    *,
    precision: Precision = "fp32",
    modes: tuple[Mode, ...] = ("static", "profiles"),
) -> Path:
    """A static pair of `STATIC` and one of `WIDE` or `WIDE_21`. Kept if it is there."""
    model = model or tiny()
    wide = WIDE if model.kind == QWEN_IMAGE else WIDE_21
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:  # the other test process waits, and finds them
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / "done"
        if not done.exists():
            version = backends.get("onnxruntime").version()
            for part in PARTS:
                onnx = folder / f"{part}.graph"
                graph = export_onnx(
                    model,
                    part,
                    onnx,
                    precision=precision,
                    # A fixed graph exports in half the time; one with profiles cannot be fixed.
                    resolution=None if "profiles" in modes else STATIC,
                    lowering=choose_lowering("onnxruntime", version, precision),
                )
                for mode in modes:
                    write(
                        folder,
                        part,
                        mode,
                        Profile.fixed(STATIC) if mode == "static" else wide,
                        onnx=onnx,
                        onnx_sha256=graph.sha256,
                        precision=precision,
                        model=model,
                    )
            done.touch()
    return folder
