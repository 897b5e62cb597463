"""What this machine can do: each thing checked, its state, and the command that fixes it.

Nothing is asked of the network: the hub is judged by what its cache holds.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Literal

from qvae_trt import backends, store
from qvae_trt.backends import Verdict, devices
from qvae_trt.commands import command_line
from qvae_trt.errors import ForeignEngineError, QvaeError
from qvae_trt.profiles import BACKENDS
from qvae_trt.store import show
from qvae_trt.version import __version__

Status = Literal["ok", "warn", "fail"]

_HUB_MODEL = "Qwen/Qwen-Image"
# Seven static pairs and the profiles pair of the full VAE, folded to 44.6 million parameters, are
# 0.7 GB of weights in fp16. TensorRT keeps some of them in several layouts.
_ENGINES_BYTES = 4 * 2**30
_SMALLEST_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. `fix` is a command or a change, where one helps."""

    name: str
    status: Status
    detail: str
    fix: str | None = None


def diagnose(engine_dir: Path) -> tuple[Check, ...]:
    """Look at everything, in reading order; takes seconds, since torch is imported."""
    fused = _fused()
    found = [_python(), _gpu(), *_backends(fused), _auto(fused)]
    found += [_torch(), fused, *map(_package, ("diffusers", "onnx", "polygraphy"))]
    found += [_disk(engine_dir), _engines(engine_dir), _hub()]
    return tuple(found)


def _python() -> Check:
    place = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    detail = f"{place}, qvae {__version__}"
    if sys.platform == "linux" and platform.machine() == "x86_64":
        return Check("python", "ok", detail)
    fix = "TensorRT's wheels are for x86-64 Linux; elsewhere use onnxruntime"
    return Check("python", "warn", detail, fix)


def _gpu() -> Check:
    gpus = devices.gpus()
    if not gpus:
        fix = "install NVIDIA's driver (nvidia-smi must show the GPU); else the CPU is used"
        return Check("gpu", "warn", devices.absence(), fix)
    words = []
    for gpu in gpus:
        memory = "" if gpu.total_bytes is None else f", {gpu.total_bytes / 2**30:.0f} GiB"
        words.append(f"{gpu.name} (compute capability {gpu.compute_capability}{memory})")
    return Check("gpu", "ok", f"{'; '.join(words)}; driver {gpus[0].driver or 'unknown'}")


def _backends(fused: Check) -> Iterator[Check]:
    for name in BACKENDS:
        try:
            backend = backends.get(name)
            version, build, run = backend.version(), backend.can_build(), backend.can_run()
        except QvaeError as error:
            cause = error.__cause__
            absent = isinstance(cause, ModuleNotFoundError) and cause.name == name
            if name == "onnxruntime":  # what is left where no TensorRT is
                yield Check(name, "fail", error.what, error.fix)
            elif absent and fused.status == "ok":
                yield Check(name, "ok", "not installed; only engines need it")
            else:
                yield Check(name, "warn", error.what, error.fix)
            continue
        able = build.ok and run.ok
        detail = f"{version}; builds: {_verdict(build)}; runs: {_verdict(run)}"
        yield Check(name, "ok" if able else "warn", detail, build.fix or run.fix)
    yield from _onnxruntime_twice()


def _verdict(verdict: Verdict) -> str:
    return "yes" if verdict.ok else f"no, {verdict.reason}"


def _onnxruntime_twice() -> Iterator[Check]:
    """Both wheels own the folder `onnxruntime/`; the one installed last has its libraries there."""
    with suppress(metadata.PackageNotFoundError):
        for name in ("onnxruntime", "onnxruntime-gpu"):
            metadata.version(name)
        detail = "onnxruntime and onnxruntime-gpu are both installed, in one folder"
        again = "pip install --force-reinstall --no-deps onnxruntime-gpu"
        fix = f"pip uninstall -y onnxruntime && {again}"
        yield Check("onnxruntime-gpu", "warn", detail, fix)


def _auto(fused: Check) -> Check:
    name = backends.resolve("auto")
    if name != "onnxruntime" or not devices.gpus() or fused.status == "ok":
        return Check("--backend auto", "ok", name)
    fix = "pip install 'qvae-trt[gpu]'"
    return Check("--backend auto", "warn", "onnxruntime, although there is a GPU", fix)


def _engines(engine_dir: Path) -> Check:
    """What is there by its sidecars, and what of it is not this machine's; no file is hashed."""
    locked = _unreadable(engine_dir)
    if locked is not None:
        fix = f"let this user into it: {command_line(['chmod', 'u+rX', str(locked)])}"
        return Check("engines", "warn", f"{locked}: no permission to read", fix)
    found = Counter(_engine_in_words(engine.path) for engine in store.find_engines(engine_dir))
    if not found:
        return Check("engines", "ok", f"none in {engine_dir} yet")
    told = [f"{count} of {words}" for (_, words), count in found.items()]
    detail = f"in {engine_dir}: {'; '.join(told)}"
    if all(serves for serves, _ in found):
        return Check("engines", "ok", detail)
    fix = "run qvae build with the options they were built with; qvae inspect ENGINE shows them"
    return Check("engines", "warn", detail, fix)


def _engine_in_words(engine: Path) -> tuple[bool, str]:
    """Whether this machine can run an engine, and what it is."""
    try:
        key = store.read_sidecar(engine).key
    except ForeignEngineError:
        return False, "unknown origin, without a sidecar"
    except QvaeError:
        return False, "unknown origin, with an unreadable sidecar"
    words = f"{show(key.flavour)} {show(key.flavour_version)} on {show(key.gpu)}"
    try:
        backend = backends.get(key.flavour)
        backend.can_run().require()
    except QvaeError as error:  # nothing is wrong with the engine
        return False, f"{words}, not for this machine ({error.what})"
    if store.differences(key, backend.identity()):
        return False, f"{words}, not for this machine"
    return True, words


def _unreadable(engine_dir: Path) -> Path | None:
    """The first existing folder on the path to the engines that this user may not read."""
    above = ((parent, os.X_OK) for parent in engine_dir.absolute().parents)
    own = (engine_dir, engine_dir / "profiles", engine_dir / "static")
    read = ((folder, os.R_OK | os.X_OK) for folder in chain(own, engine_dir.glob("static/*/")))
    return next((place for place, right in chain(above, read) if _locked(place, right)), None)


def _locked(folder: Path, right: int) -> bool:
    there = os.path.isdir(folder)  # noqa: PTH112  Path.is_dir raises in a locked folder
    return there and not os.access(folder, right)


def _torch() -> Check:
    found = _package("torch")
    if found.status == "fail":
        return found
    torch = importlib.import_module("torch")
    cuda = torch.version.cuda
    if cuda is not None and torch.cuda.is_available():
        return Check("torch", "ok", f"{torch.__version__}, CUDA {cuda}")
    if not devices.gpus():
        return Check("torch", "ok", f"{torch.__version__}, on the CPU")
    if cuda is None:
        fix = "pip install --force-reinstall torch"
        return Check("torch", "warn", f"{torch.__version__} has no CUDA", fix)
    fix = f"install a driver that supports CUDA {cuda}, or a torch built for an older CUDA"
    return Check("torch", "warn", f"{torch.__version__} cannot use the GPU", fix)


def _fused() -> Check:
    """Whether the fused path can run here. That its kernels are right is checked at first use."""
    why: str | None = "needs a CUDA GPU that torch can use"
    fix = "a card of compute capability 8.0 or later, PyTorch 2.8 or later; else qvae build"
    try:
        torch, fused = map(importlib.import_module, ("torch", "qvae_trt.fused"))
        if torch.cuda.is_available():
            why = fused.refusal(torch.device("cuda"))
    except (ImportError, OSError) as error:
        why = f"does not import: {error}"
    except (RuntimeError, AssertionError) as error:  # torch's, of a GPU that does not answer
        why = f"cannot ask the GPU: {error}"
    if why is None and not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        why, fix = "Triton finds no C compiler", "install gcc, or set CC"
    if why is None:
        return Check("fused path", "ok", "serves any size here, without an engine")
    return Check("fused path", "warn", why, fix)


def _package(name: str) -> Check:
    try:
        importlib.import_module(name)
        return Check(name, "ok", metadata.version(name))
    except (ImportError, OSError, metadata.PackageNotFoundError) as error:
        # OSError: a shared library that does not load.
        fix = f"pip install --force-reinstall {name}"
        return Check(name, "fail", f"does not import: {error}", fix)


def _disk(engine_dir: Path) -> Check:
    folder = engine_dir.absolute()
    while not os.path.exists(folder):  # noqa: PTH110  Path.exists raises in a locked folder
        folder = folder.parent
    fix = "name another --engine-dir"
    if not folder.is_dir():
        return Check("disk", "fail", f"{folder} is a file, expected a folder", fix)
    if not os.access(folder, os.W_OK):
        detail = f"{folder}: no permission to write"
        if _unreadable(engine_dir) is None and store.find_engines(engine_dir):
            detail = f"{detail}: the engines there serve, and none can be built"
            return Check("disk", "warn", detail, f"to build: {fix}")
        return Check("disk", "fail", detail, fix)
    free = shutil.disk_usage(folder).free
    detail = f"{free / 2**30:.1f} GiB free in {folder}"
    if free < _SMALLEST_BYTES:
        return Check("disk", "fail", detail, f"free some space, or {fix}")
    if free < _ENGINES_BYTES:
        detail = f"{detail}; all engines together may need 4 GiB"
        return Check("disk", "warn", detail, "free some space")
    return Check("disk", "ok", detail)


def _hub() -> Check:
    found = _package("huggingface_hub")
    if found.status == "fail":
        return replace(found, name="model")
    hub = importlib.import_module("huggingface_hub")
    cached = hub.try_to_load_from_cache(_HUB_MODEL, "vae/diffusion_pytorch_model.safetensors")
    if isinstance(cached, str):
        return Check("model", "ok", f"{_HUB_MODEL}: in the hub's cache")
    offline = " and HF_HUB_OFFLINE is set" if hub.constants.HF_HUB_OFFLINE else ""
    fix = f"hf download {_HUB_MODEL} --include 'vae/*'; offline: --model bundled:tiny"
    detail = f"{_HUB_MODEL}: not in the hub's cache{offline} (the hub was not asked)"
    return Check("model", "warn", detail, fix)
