"""Whatever happens to an engine: the right picture and one warning, or the named error."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import Mock

import pytest
import torch
from doubles import Faulty
from ort_engines import tiny

from qvae_trt import backends, store
from qvae_trt.errors import (
    BackendError,
    DeviceMemoryError,
    EngineError,
    ExecutionError,
    ForeignEngineError,
    QvaeError,
    StaleEngineError,
)
from qvae_trt.files.reading import sha256_file
from qvae_trt.profiles import Resolution
from qvae_trt.runtime import cache as failures
from qvae_trt.runtime.cache import PAUSE_S, STRIKES
from qvae_trt.runtime.fallback import FallbackWarning
from qvae_trt.runtime.pytorch import FusedPath
from qvae_trt.runtime.vae import TrtVae, load_vae

if TYPE_CHECKING:
    from collections.abc import Callable

ENGINE = "static/96x64/vae_decoder.onnx"
Z = torch.randn((1, 16, 1, 8, 12), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def folder(engine_dir, tmp_path) -> Path:
    """A folder with nothing but a static decoder, to be damaged."""
    target = tmp_path / "engines"
    (target / ENGINE).parent.mkdir(parents=True)
    for path in (target / ENGINE, store.sidecar_path(target / ENGINE)):
        shutil.copy(engine_dir / path.relative_to(target), path)
    return target


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    return tiny().vae.decode(Z).sample


@pytest.fixture
def backend() -> Faulty:
    return Faulty(backends.get("onnxruntime"))


def load(folder: Path, fallback: str, backend: object = "onnxruntime", **options: object) -> TrtVae:
    return load_vae(folder, model=tiny(), backend=backend, fallback=fallback, **options)


def decode_with_warnings(vae: TrtVae) -> tuple[torch.Tensor, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        y = vae.decode(Z).sample
    return y, [str(w.message) for w in caught if issubclass(w.category, FallbackWarning)]


def near(y: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(y, expected, atol=1e-4, rtol=0)


def cut(size: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        os.truncate(path, int(path.stat().st_size * size))

    return damage


def flip(place: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[int(len(data) * place)] ^= 0x10
        path.write_bytes(data)

    return damage


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def sidecar(**changes: object) -> Callable[[Path], None]:
    """Change fields of the sidecar: `key__gpu="H100"` is `["key"]["gpu"]`."""

    def damage(path: Path) -> None:
        file = store.sidecar_path(path)
        data = json.loads(file.read_text())
        for name, value in changes.items():
            *groups, last = name.split("__")
            place = data
            for group in groups:
                place = place[group]
            place[last] = value
        file.write_text(json.dumps(data))

    return damage


def named_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def no_sidecar(path: Path) -> None:
    store.sidecar_path(path).unlink()


def garbled_sidecar(path: Path) -> None:
    store.sidecar_path(path).write_text('{"format_version": 1, "key": ')


def whole_but_not_an_engine(path: Path) -> None:
    """Passes the check of the hash, and the backend still cannot load it."""
    path.write_bytes(b"not an engine" * 100)
    sidecar(engine__bytes=1300, engine__sha256=sha256_file(path))(path)


FILES: dict[str, tuple[Callable[[Path], None], type[QvaeError], str]] = {
    **{f"cut to {i}/8": (cut(i / 8), StaleEngineError, "cut short") for i in range(1, 8)},
    "last byte missing": (cut(0.999999), StaleEngineError, "cut short"),
    **{f"bit flipped at {i}/32": (flip(i / 32), StaleEngineError, "changed") for i in range(32)},
    "empty": (cut(0), StaleEngineError, "cut short"),
    "missing": (Path.unlink, EngineError, "no file"),
    "a directory": (directory, EngineError, "no file"),
    "a symlink loop": (loop, EngineError, "no file"),
    "a named pipe": (named_pipe, EngineError, "no file"),
    "no sidecar": (no_sidecar, ForeignEngineError, "no sidecar"),
    "sidecar malformed": (garbled_sidecar, EngineError, "sidecar"),
    "sidecar of a newer format": (sidecar(format_version=99), EngineError, "newer qvae"),
    "of another engine": (sidecar(key__part="encoder"), StaleEngineError, "the other half"),
    "other version": (sidecar(key__flavour_version="0.1"), StaleEngineError, "another version"),
    "other GPU": (sidecar(key__gpu="NVIDIA H100"), StaleEngineError, "another GPU"),
    "other weights": (sidecar(key__weights_sha256="0" * 64), StaleEngineError, "other weights"),
    "not an engine": (whole_but_not_an_engine, EngineError, "does not load"),
}


@pytest.mark.parametrize("fault", FILES)
def test_a_damaged_file(folder, expected, backend, fault):
    damage, error, word = FILES[fault]
    damage(folder / ENGINE)
    vae = load(folder, "warn", backend)
    y, said = decode_with_warnings(vae)
    near(y, expected)
    assert len(said) == 1
    assert word in said[0]
    assert "decoder 96x64: PyTorch instead" in said[0]
    y, said = decode_with_warnings(vae)
    near(y, expected)
    assert said == [], "once for each size and reason"
    intact = damage is whole_but_not_an_engine
    assert len(backend.opened) == (2 if intact else 0), "read no further than the hash"
    assert backend.live == 0, "nothing stays loaded"

    with pytest.raises(error, match=word) as caught:
        load(folder, "raise").decode(Z)
    assert type(caught.value) is error
    assert "qvae build" in str(caught.value) or "newer" in str(caught.value)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        near(load(folder, "silent").decode(Z).sample, expected)


UNREADABLE = """
import sys, warnings
import torch
from qvae_trt.errors import EngineError
from qvae_trt.runtime.cache import STRIKES
from qvae_trt.runtime.fallback import FallbackWarning
from qvae_trt.runtime.vae import load_vae
folder, latents, closed, out = sys.argv[1:]
z = torch.load(latents, weights_only=True)
options = {"model": "bundled:tiny", "backend": "onnxruntime"}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    torch.save(load_vae(folder, fallback="warn", **options).decode(z).sample, out)
(said,) = [str(w.message) for w in caught if issubclass(w.category, FallbackWarning)]
assert "Permission denied" in said, said
try:
    load_vae(folder, fallback="raise", **options).decode(z)
except EngineError as error:
    assert type(error) is EngineError and "Permission denied" in str(error), error
else:
    raise AssertionError("nothing was raised")
"""


@pytest.mark.parametrize("closed", ["engine", "sidecar"])
def test_a_file_without_permission(folder, expected, tmp_path, closed):
    """As a process that may not read everything: root may."""
    path = folder / ENGINE
    (store.sidecar_path(path) if closed == "sidecar" else path).chmod(0)
    torch.save(Z, tmp_path / "z.pt")
    out = tmp_path / "y.pt"
    arguments = [folder, tmp_path / "z.pt", closed, out]
    ran = subprocess.run(
        [sys.executable, "-c", UNREADABLE, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=without_capabilities,
    )
    assert ran.returncode == 0, ran.stderr
    near(torch.load(out, weights_only=True), expected)


def without_capabilities() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        if os.geteuid() == 0 and libc.prctl(24, capability, 0, 0, 0) != 0:  # PR_CAPBSET_DROP
            raise OSError(ctypes.get_errno(), "prctl")


def test_a_file_that_does_not_load_is_left_alone_until_it_changes(folder, engine_dir, expected):
    backend = Faulty(backends.get("onnxruntime"))
    whole_but_not_an_engine(folder / ENGINE)
    tries: list[Path] = []
    backend.fault = lambda what, path: tries.append(path) if what == "open" else None
    vae = load(folder, "silent", backend)
    for _ in range(5):
        near(vae.decode(Z).sample, expected)
    assert len(tries) == STRIKES
    for path in (folder / ENGINE, store.sidecar_path(folder / ENGINE)):
        shutil.copy(engine_dir / path.relative_to(folder), path)
    near(vae.decode(Z).sample, expected)
    assert len(tries) == STRIKES + 1
    assert backend.live == 1, "mended: the engine serves"


def test_the_next_best_engine_serves_where_the_best_is_damaged(engine_dir, tmp_path, expected):
    shutil.copytree(engine_dir, tmp_path / "both")
    flip(0.5)(tmp_path / "both" / ENGINE)
    backend = Faulty(backends.get("onnxruntime"))
    vae = load(tmp_path / "both", "warn", backend)
    y, said = decode_with_warnings(vae)
    near(y, expected)
    assert [path.name for path in backend.opened] == ["vae_decoder_multi_profile.onnx"]
    assert len(said) == 1
    assert "the profiles engine instead" in said[0]
    with pytest.warns(FallbackWarning, match="the profiles engine instead"):
        y = load(tmp_path / "both", "raise").decode(Z).sample
    near(y, expected)  # an engine served: nothing to raise


def test_no_room_to_load_is_tried_again_at_once_and_at_the_next_call(folder, expected, backend):
    """What is idle is closed first; memory comes back, so that nothing is remembered."""
    refusals = [2]

    def fault(what: str, path: Path) -> None:
        if what == "open" and refusals[0]:
            refusals[0] -= 1
            raise DeviceMemoryError(f"{path}: no memory to load it")

    backend.fault = fault
    vae = load(folder, "warn", backend)
    y, said = decode_with_warnings(vae)
    near(y, expected)
    assert len(said) == 1
    assert "no memory to load it" in said[0]
    assert refusals[0] == 0
    y, said = decode_with_warnings(vae)
    near(y, expected)
    assert said == []
    assert backend.live == 1


def test_idle_engines_go_where_there_is_no_room_to_load(engine_dir, expected, backend):
    """One engine at a time fits: each makes room for the next."""

    def fault(what: str, path: Path) -> None:
        if what == "open" and backend.live:
            raise DeviceMemoryError(f"{path}: no memory to load it")

    backend.fault = fault
    vae = load(engine_dir, "raise", backend)
    x = torch.zeros(1, 3, 1, 64, 96)
    for _ in range(2):
        vae.encode(x)
        near(vae.decode(Z).sample, expected)
        assert backend.live == 1
    assert len(backend.opened) == 4


def test_no_room_to_load_raises_when_asked_for(folder, expected, backend):
    full = [True]

    def fault(what: str, path: Path) -> None:
        if what == "open" and full[0]:
            raise DeviceMemoryError(f"{path}: no memory to load it")

    backend.fault = fault
    vae = load(folder, "raise", backend)
    for _ in range(STRIKES):  # after as many other failures it would be left alone
        with pytest.raises(DeviceMemoryError, match="no memory to load it"):
            vae.decode(Z)
    full[0] = False
    near(vae.decode(Z).sample, expected)
    assert backend.live == 1


@pytest.mark.parametrize(
    "error", [ExecutionError("the run failed"), DeviceMemoryError("no memory for the run")]
)
def test_a_failing_run(folder, expected, backend, error):
    failing = [True]

    def fault(what: str, _path: Path) -> None:
        if what == "execute" and failing[0]:
            raise error

    backend.fault = fault
    vae = load(folder, "warn", backend)
    y, said = decode_with_warnings(vae)
    near(y, expected)
    assert len(said) == 1
    assert error.what in said[0]
    if isinstance(error, ExecutionError):
        assert backend.live == 0, "what failed may be broken: it is loaded anew"
    strict = load(folder, "raise", backend)
    with pytest.raises(type(error), match=error.what):
        strict.decode(Z)
    failing[0] = False
    y, said = decode_with_warnings(vae)
    near(y, expected)
    assert said == []
    near(strict.decode(Z).sample, expected)
    assert backend.live == 2, "both serve again"


def test_an_engine_that_always_fails_is_left_alone(folder, expected, backend, monkeypatch):
    runs, now = [], [1000.0]
    monkeypatch.setattr(failures.time, "monotonic", lambda: now[0])

    def fault(what: str, path: Path) -> None:
        if what == "execute":
            runs.append(path)
            raise ExecutionError("always")

    backend.fault = fault
    vae = load(folder, "silent", backend)
    for _ in range(6):
        near(vae.decode(Z).sample, expected)
    assert len(runs) == 3
    now[0] += PAUSE_S
    for _ in range(2):
        vae.decode(Z)
    assert len(runs) == 4, "a minute later it is tried, and then left alone again"
    (folder / ENGINE).touch()
    vae.decode(Z)
    assert len(runs) == 5, "its file changed"
    for _ in range(4):
        vae.decode(Z)
    assert len(runs) == 7
    vae.release_memory()
    vae.decode(Z)
    assert len(runs) == 8, "release_memory forgets"


def test_no_memory_for_scratch(folder, expected, backend, monkeypatch):
    """Nothing runs with less than it asked for, and the next call tries again."""
    backend.scratch_bytes = 2**20
    runs = []
    backend.fault = lambda what, path: runs.append(path) if what == "execute" else None
    empty, full = torch.empty, [True]

    def refuse(*size, **options):
        if full[0] and options.get("dtype") is torch.uint8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return empty(*size, **options)

    monkeypatch.setattr(torch, "empty", refuse)
    vae = load(folder, "warn", backend)
    y, said = decode_with_warnings(vae)
    near(y, expected)
    assert "cannot allocate 0.00 GiB of engine scratch memory" in said[0]
    strict = load(folder, "raise", backend)
    no_memory = Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory"))
    with monkeypatch.context() as patch:
        patch.setattr(FusedPath, "refusal", no_memory)  # its first answer takes memory, too
        with pytest.raises(DeviceMemoryError, match="engine scratch memory"):
            strict.decode(Z)
    assert runs == []
    full[0] = False
    near(vae.decode(Z).sample, expected)
    assert len(runs) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_found_when_asked_for(folder, expected, backend, value):
    backend.fault = lambda what, _path: value if what == "execute" else None
    assert not torch.isfinite(load(folder, "raise", backend).decode(Z).sample).any(), (
        "not asked for"
    )
    vae = load(folder, "warn", backend, check_nan=True)
    y, said = decode_with_warnings(vae)
    near(y, expected)
    assert "NaN or infinity" in said[0]
    with pytest.raises(ExecutionError, match="NaN or infinity"):
        load(folder, "raise", backend, check_nan=True).decode(Z)


def test_a_backend_that_is_absent(folder, expected):
    vae = load(folder, "warn", "tensorrt")
    y, said = decode_with_warnings(vae)
    near(y, expected)
    assert len(said) == 1
    assert "tensorrt" in said[0]
    with pytest.raises(BackendError, match="tensorrt"):
        load(folder, "raise", "tensorrt")


def test_engines_elsewhere_than_the_input(folder, expected, backend):
    """No copies behind the user's back: the engine's device and the picture's must be the same."""
    backend.identity = lambda: {"gpu": "NVIDIA H200"}  # type: ignore[method-assign]
    y, said = decode_with_warnings(load(folder, "warn", backend, device="cpu"))
    near(y, expected)
    assert "engines run on cuda here, the input is on cpu" in said[0]
    assert backend.opened == []


@pytest.mark.parametrize(
    "there", ["static/96x64/vae_decoder", "profiles/vae_decoder_multi_profile"]
)
@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_engines_of_another_backend_are_named(
    engine_dir, tmp_path, expected, backend, there, device_type
):
    """Also on a GPU, where what is said first is that ONNX Runtime is on the CPU."""
    if device_type == "cuda":
        backend.identity = lambda: {"gpu": "NVIDIA H200"}  # type: ignore[method-assign]
    engine = tmp_path / f"{there}.trt"
    engine.parent.mkdir(parents=True)
    shutil.copy(engine_dir / f"{there}.onnx", engine)
    sidecar = store.read_sidecar(engine_dir / f"{there}.onnx")
    of_rtx = replace(sidecar, key=replace(sidecar.key, flavour="tensorrt_rtx"))
    store.sidecar_path(engine).write_text(of_rtx.to_json())
    vae = load(tmp_path, "warn", backend, device="cpu")
    y, said = decode_with_warnings(vae)
    near(y, expected)
    assert "backend='tensorrt_rtx' (--backend tensorrt_rtx) takes the engines" in said[0]
    if device_type == "cpu":
        assert (
            f"no file {engine.with_suffix('.onnx')}; there is an engine of tensorrt_rtx" in said[0]
        )
    with pytest.raises(EngineError, match="takes the engines of tensorrt_rtx"):
        load(tmp_path, "raise", backend, device="cpu").decode(Z)
    # Of another size, or damaged: of no help.
    elsewhere = vae.choice("decoder", Resolution(512, 512))
    assert "tensorrt_rtx" not in elsewhere.explain()
    store.sidecar_path(engine).write_text("{}")
    assert "tensorrt_rtx" not in vae.choice("decoder", Resolution(64, 96)).explain()


def test_a_foreign_engine_serves_when_asked_for(engine_dir, tmp_path, expected):
    shutil.copytree(engine_dir / "profiles", tmp_path / "profiles")
    for path in (tmp_path / "profiles").glob("*.json"):
        path.unlink()
    backend = Faulty(backends.get("onnxruntime"))
    vae = load(tmp_path, "raise", backend, allow_foreign=True)
    with pytest.warns(UserWarning, match="no sidecar"):
        near(vae.decode(Z).sample, expected)
    assert vae.memory()["engines"] == 1
    near(vae.decode(Z).sample, expected)
    assert backend.live == 1


def test_another_bug_is_not_swallowed(folder, backend):
    def fault(what: str, _path: Path) -> None:
        raise ZeroDivisionError("a bug")

    backend.fault = fault
    with pytest.raises(ZeroDivisionError):
        load(folder, "silent", backend).decode(Z)


# --- PyTorch runs out of memory too
# -----------------------------------------------------------------


class Cramped:
    """PyTorch on a device where inputs above a size do not fit."""

    def __init__(self, monkeypatch, limit: int, error: type[RuntimeError] = torch.OutOfMemoryError):
        from qvae_trt.folding import FoldedVae

        self.sizes: list[tuple[int, int]] = []
        decode = FoldedVae.decode

        def cramped(vae, z):
            self.sizes.append((z.shape[3] * 8, z.shape[4] * 8))
            if z.shape[3] * z.shape[4] * 64 > limit**2:
                raise error("DefaultCPUAllocator: can't allocate memory")
            return decode(vae, z)

        monkeypatch.setattr(FoldedVae, "decode", cramped)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_pytorch_tiles_when_memory_does_not_suffice(tmp_path, monkeypatch, error):
    z = torch.randn(1, 16, 1, 36, 40, generator=torch.Generator().manual_seed(0))
    whole = tiny().vae.decode(z).sample
    cramped = Cramped(monkeypatch, 256, error)
    y = load(tmp_path, "silent").decode(z).sample
    assert max(h * w for h, w in cramped.sizes[-4:]) <= 256**2
    assert y.shape == whole.shape
    psnr = 10 * torch.log10(4 / (y - whole).square().mean())
    assert float(psnr) > 35


def test_tiles_for_want_of_memory_see_every_pixel(tmp_path, monkeypatch):
    from qvae_trt.folding import FoldedVae

    x = torch.randn(1, 3, 1, 263, 300, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    whole = tiny().vae.encode(x).latent_dist.mean
    encode, sizes = FoldedVae.encode, []

    def cramped(vae, x):
        sizes.append(tuple(x.shape[3:]))
        if x.shape[3] * x.shape[4] > 264**2:
            raise torch.OutOfMemoryError
        return encode(vae, x)

    monkeypatch.setattr(FoldedVae, "encode", cramped)
    found = load(tmp_path, "silent").encode(x).latent_dist.mean
    assert sizes == [(263, 300), (263, 256), (263, 260)]
    for edge in (..., -1, slice(None)), (..., slice(None), -1):
        assert float((found - whole)[edge].norm() / whole[edge].norm()) < 0.05


def test_pytorch_gives_up_in_words(tmp_path, monkeypatch):
    Cramped(monkeypatch, 8)
    with pytest.raises(DeviceMemoryError, match="tiles of 256 pixels"):
        load(tmp_path, "silent").decode(torch.zeros(1, 16, 1, 48, 64))


def test_any_other_error_of_pytorch_goes_through(tmp_path, monkeypatch):
    from qvae_trt.folding import FoldedVae

    def broken(vae, z):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(FoldedVae, "decode", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        load(tmp_path, "silent").decode(Z)
