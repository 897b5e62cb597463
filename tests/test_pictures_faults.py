"""Faults while pictures run: the picture is still right, and what happened is said.

Each row injects a fault into a copy of the engines, then asks two questions. `roundtrip`: is the
picture that of PyTorch, with a note? `verify`: is the engine anything but passed?
"""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import ort_engines
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from verify_engines import SIZES, change, kernels, replace

from qvae_trt import images, pictures, store
from qvae_trt.errors import DeviceMemoryError, ExecutionError, PictureError
from qvae_trt.model import BUNDLED_TINY
from qvae_trt.profiles import PARTS, engine_path
from qvae_trt.runtime.engine import Engine
from qvae_trt.verify import verify


@pytest.fixture(scope="module")
def source(root, tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "in.png"
    with Image.open(root / "qvae_trt/data/pictures/astronaut.jpg") as whole:
        whole.crop((200, 60, 290, 121)).save(path)
    return path


@pytest.fixture(scope="module")
def expected(source):
    """The round trip of diffusers' own VAE."""
    vae = ort_engines.tiny().vae
    x = images.pad_to_multiple(images.read_picture(source))[:, :, None]
    with torch.inference_mode():
        return images.crop(vae.decode(vae.encode(x).latent_dist.mode()).sample[:, :, 0], (61, 90))


@pytest.fixture
def static(tmp_path_factory, tmp_path):
    """A copy of the static pair."""
    shutil.copytree(
        ort_engines.shared(tmp_path_factory) / "static", tmp_path / "engines" / "static"
    )
    return tmp_path / "engines"


def trip(engines, source, out):
    return pictures.roundtrip(
        source, out, engine_dir=engines, model=BUNDLED_TINY, backend="onnxruntime"
    )


def engine(engines, part="decoder"):
    return engine_path(engines, part, "static", ".onnx", SIZES[0])


def edit_sidecar(engines, **changes):
    path = store.sidecar_path(engine(engines))
    data = json.loads(path.read_text())
    for name, value in changes.items():
        (data["key"] if name in data["key"] else data)[name] = value
    path.write_text(json.dumps(data))


def _nan(proto):
    tensor = kernels(proto)[1]
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = np.nan
    replace(tensor, values)


def _flip(engines):
    data = bytearray(engine(engines).read_bytes())
    data[len(data) // 3] ^= 0x40
    engine(engines).write_bytes(data)


def _cut(engines):
    engine(engines).write_bytes(engine(engines).read_bytes()[:1000])


def _folder(engines):
    engine(engines).unlink()
    engine(engines).mkdir()


def _loop(engines):
    engine(engines).unlink()
    engine(engines).symlink_to(engine(engines))


#: fault -> (how it is made, the row that `verify` gives; None: there is no row).
ON_DISK = {
    "truncated": (_cut, "error"),
    "a byte flipped": (_flip, "error"),
    "empty": (lambda e: engine(e).write_bytes(b""), "error"),
    "a directory": (_folder, "error"),
    "a symlink loop": (_loop, "error"),
    "missing": (lambda e: engine(e).unlink(), None),
    "sidecar missing": (lambda e: store.sidecar_path(engine(e)).unlink(), "not run"),
    "sidecar malformed": (lambda e: store.sidecar_path(engine(e)).write_text("{"), "error"),
    "sidecar of a newer format": (lambda e: edit_sidecar(e, format_version=99), "error"),
    "sidecar of another engine": (
        lambda e: shutil.copy(
            store.sidecar_path(engine(e, "encoder")), store.sidecar_path(engine(e))
        ),
        "error",
    ),
    "another version of its backend": (lambda e: edit_sidecar(e, flavour_version="0.1"), "error"),
    "built for another GPU": (lambda e: edit_sidecar(e, gpu="NVIDIA T4"), "error"),
    "built from other weights": (lambda e: edit_sidecar(e, weights_sha256="0" * 64), "error"),
    "NaN in the output": (lambda e: change(engine(e), _nan), "broken"),
}


@pytest.mark.parametrize("fault", ON_DISK)
def test_a_bad_file_still_gives_the_right_picture_and_never_passes(
    static, source, expected, tmp_path, fault
):
    make, status = ON_DISK[fault]
    make(static)
    done = trip(static, source, tmp_path / "out.png")
    again = images.read_picture(done.out)
    assert float((again - expected).abs().max()) < 1.01 / 127.5
    encoding, decoding = done.passes
    assert (encoding.engine, encoding.notes) == ("static", ())
    assert decoding.engine == "folded"
    assert decoding.notes
    report = verify(static, model=BUNDLED_TINY)
    found = {row.status for row in report.rows if row.part == "decoder"}
    assert found == (set() if status is None else {status})
    assert {row.status for row in report.rows if row.part == "encoder"} == {"passed"}
    assert report.ok == (status in (None, "not run"))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "error", [ExecutionError("the run failed"), DeviceMemoryError("no memory for the run")]
)
def test_a_run_that_fails_still_gives_the_right_picture(
    static, source, expected, tmp_path, monkeypatch, part, error
):
    real = Engine.run

    def run(self, *args, **kwargs):
        if self.part == part:
            raise error
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Engine, "run", run)
    done = trip(static, source, tmp_path / "out.png")
    assert float((images.read_picture(done.out) - expected).abs().max()) < 1.01 / 127.5
    assert [run.engine for run in done.passes if run.part == part] == ["folded"]
    assert any(error.what in note for run in done.passes for note in run.notes)


def test_the_engine_that_served_in_place_of_a_bad_one_is_named(
    source, expected, tmp_path, tmp_path_factory
):
    engines = tmp_path / "engines"
    shutil.copytree(ort_engines.shared(tmp_path_factory), engines)
    _cut(engines)
    done = trip(engines, source, tmp_path / "out.png")
    assert float((images.read_picture(done.out) - expected).abs().max()) < 1.01 / 127.5
    encoding, decoding = done.passes
    assert (encoding.engine, decoding.engine) == ("static", "profile 0")
    assert decoding.path == engines / "profiles" / "vae_decoder_multi_profile.onnx"
    assert "the profiles engine instead" in " ".join(decoding.notes)


def test_an_engine_that_does_not_load_still_gives_the_right_picture(
    static, source, expected, tmp_path, monkeypatch
):
    def refuse(*_args, **_kwargs):
        raise DeviceMemoryError("no memory for the engine")

    monkeypatch.setattr(Engine, "open", refuse)
    done = trip(static, source, tmp_path / "out.png")
    assert float((images.read_picture(done.out) - expected).abs().max()) < 1.01 / 127.5
    assert [run.engine for run in done.passes] == ["folded", "folded"]
    report = verify(static, model=BUNDLED_TINY)
    assert {row.status for row in report.rows} == {"error"}
    assert all("no memory for the engine" in row.reason for row in report.rows)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("command", ["encode", "decode", "roundtrip"])
def test_a_disk_that_refuses_leaves_the_old_file(
    static, source, tmp_path, monkeypatch, number, command
):
    latents = tmp_path / "z.safetensors"
    pictures.encode(source, latents, engine_dir=static, model=BUNDLED_TINY)
    out = tmp_path / ("out.safetensors" if command == "encode" else "out.png")
    out.write_bytes(b"the old file")
    before = sorted(p.name for p in tmp_path.iterdir())

    def refuse(_descriptor):
        raise OSError(number, "refused")

    monkeypatch.setattr("os.fsync", refuse)
    given = latents if command == "decode" else source
    with pytest.raises(PictureError, match="cannot write"):
        getattr(pictures, command)(given, out, engine_dir=static, model=BUNDLED_TINY)
    assert out.read_bytes() == b"the old file"
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_ctrl_c_leaves_the_old_file(static, source, tmp_path, monkeypatch):
    out = tmp_path / "out.png"
    out.write_bytes(b"the old file")
    before = sorted(p.name for p in tmp_path.iterdir())

    def interrupt(_descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trip(static, source, out)
    assert out.read_bytes() == b"the old file"
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_nothing_is_written_outside_the_folders_named(static, source, tmp_path, monkeypatch):
    elsewhere = tmp_path / "temporary"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    monkeypatch.chdir(elsewhere)
    before = {p for p in static.rglob("*") if not p.name.endswith(".lock")}
    trip(static, source, tmp_path / "out.png")
    verify(static, model=BUNDLED_TINY)
    assert {p for p in static.rglob("*") if not p.name.endswith(".lock")} == before
    assert list(elsewhere.iterdir()) == []
    assert list(source.parent.iterdir()) == [Path(source)]
