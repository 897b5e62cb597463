"""The folder for LightX2V's own loader: what is put there, under which names, and what is not."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import store_cases
from store_cases import put_engine

from qvae_trt import store
from qvae_trt.cli.app import main
from qvae_trt.errors import EngineError, StoreError, UsageError
from qvae_trt.kinds import QWEN_IMAGE
from qvae_trt.lightx2v_folder import make_folder
from qvae_trt.profiles import (
    MODES,
    PARTS,
    Profile,
    Resolution,
    engine_path,
    load_profiles,
    load_static_sizes,
)
from qvae_trt.tensors import TensorSpec

WIDE = Resolution(1056, 1584)
NINE = load_profiles()


def put(folder: Path, part: str, profiles: object, *, mode: str = "static", **key: object) -> Path:
    """An engine of these ranges, with its sidecar; its bytes say what it is."""
    size = profiles[0].opt
    path = engine_path(folder, part, mode, ".trt", size)
    sides = {"encoder": (size.height, size.width), "decoder": QWEN_IMAGE.latents_of(size)}[part]
    channels = key.pop("channels", {"encoder": (3, 32), "decoder": (16, 3)}[part])
    sidecar = replace(
        store_cases.make_sidecar(part=part, mode=mode, profiles=tuple(profiles), **key),
        input=TensorSpec("x", "float16", (1, channels[0], 1, *sides)),
        output=TensorSpec("y", "float16", (1, channels[1], 1, *sides)),
    )
    put_engine(path, sidecar, f"{part} of {size} {mode}".encode())
    return path


@pytest.fixture
def engines(tmp_path: Path) -> Path:
    """Every engine that LightX2V can open."""
    folder = tmp_path / "engines"
    for part in PARTS:
        for size in load_static_sizes().values():
            put(folder, part, [Profile.fixed(size)])
        put(folder, part, NINE, mode="profiles")
    return folder


def statuses(placed) -> dict[str, str]:
    return {str(Path(*one.path.parts[-3:])): one.status for one in placed}


def test_its_names_have_the_engines_of_the_sizes_that_it_opens_them_for(engines, tmp_path):
    out = tmp_path / "for lightx2v"
    placed = make_folder(engines, out, copy=False)
    assert {one.status for one in placed} == {"linked"}
    assert len(placed) == 16
    # What it calls 2:3 is 1584 wide: its swap.
    for name, size in (("16_9", "1664x928"), ("2_3", "1584x1056"), ("3_2", "1056x1584")):
        for part in PARTS:
            opened = out / "static" / name / f"vae_{part}.trt"
            assert opened.read_text() == f"{part} of {size} static"
    for part in PARTS:
        opened = out / "profiles" / f"vae_{part}_multi_profile.trt"
        assert opened.read_text() == f"{part} of 512x512 profiles"
        assert store.check_engine(opened).key.profiles == NINE


def test_links_are_relative_and_both_folders_can_be_moved_together(engines, tmp_path):
    make_folder(engines, tmp_path / "out", copy=False)
    link = tmp_path / "out" / "static" / "1_1" / "vae_encoder.trt"
    assert link.is_symlink() and not link.readlink().is_absolute()
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    tmp_path.rename(moved)
    link = moved / "out" / "static" / "1_1" / "vae_encoder.trt"
    assert link.read_text() == "encoder of 1328x1328 static"


def test_links_lead_there_from_a_linked_folder_too(engines, tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "short").symlink_to(tmp_path / "deep" / "er")
    make_folder(engines, tmp_path / "short" / "out", copy=False)
    opened = tmp_path / "short" / "out" / "static" / "1_1" / "vae_encoder.trt"
    assert opened.read_text() == "encoder of 1328x1328 static"


def test_copies_need_no_engine_folder(engines, tmp_path):
    out = tmp_path / "out"
    make_folder(engines, out, copy=False)
    placed = make_folder(engines, out, copy=True)
    assert {one.status for one in placed} == {"copied"}
    engines.rename(tmp_path / "elsewhere")
    opened = out / "static" / "3_2" / "vae_decoder.trt"
    assert not opened.is_symlink()
    assert opened.read_text() == "decoder of 1056x1584 static"
    assert store.check_engine(opened).key.part == "decoder"


def test_what_is_missing_has_the_command_that_builds_it(tmp_path):
    engines = tmp_path / "engines"
    put(engines, "encoder", [Profile.fixed(WIDE)])
    placed = make_folder(engines, tmp_path / "out", copy=False)
    found = statuses(placed)
    assert found.pop("static/2_3/vae_encoder.trt") == "linked"
    assert set(found.values()) == {"missing"}
    by_path = {str(Path(*one.path.parts[-3:])): one for one in placed}
    fix = by_path["static/2_3/vae_decoder.trt"].fix
    assert fix is not None
    assert "--mode static --resolution 1584x1056 --part decoder" in fix
    assert f"--engine-dir {engines}" in fix


COPY = pytest.mark.parametrize("copy", [False, True])


@COPY
@pytest.mark.parametrize(
    ("key", "says"),
    [
        ({"precision": "bf16"}, "found bf16, expected fp16"),
        ({"precision": "fp32"}, "found fp32, expected fp16"),
        ({"flavour": "tensorrt_rtx"}, "found tensorrt_rtx, expected tensorrt"),
        ({"channels": (4, 32)}, "from 4 channels to 32, expected 3 to 32"),
        ({"channels": (3, 96)}, "from 3 channels to 96, expected 3 to 32"),
    ],
)
def test_an_engine_that_it_would_run_wrongly_is_refused(tmp_path, key, says, copy):
    engines, out = tmp_path / "engines", tmp_path / "out"
    put(engines, "encoder", [Profile.fixed(WIDE)])
    make_folder(engines, out, copy=copy)
    link = out / "static" / "2_3" / "vae_encoder.trt"
    assert link.exists()
    put(engines, "encoder", [Profile.fixed(WIDE)], **key)
    placed = make_folder(engines, out, copy=copy)
    (one,) = [one for one in placed if one.status == "refused"]
    assert says in one.reason
    assert one.fix
    # What was made before would be opened.
    assert not os.path.lexists(link)
    assert not os.path.lexists(store.sidecar_path(link))


@COPY
def test_a_file_of_somebody_else_stays(tmp_path, copy):
    theirs = tmp_path / "out" / "static" / "1_1" / "vae_encoder.trt"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"built by hand")
    (tmp_path / "engines").mkdir()
    make_folder(tmp_path / "engines", tmp_path / "out", copy=copy)
    assert theirs.read_bytes() == b"built by hand"


def test_an_engine_under_another_sizes_name_is_refused(tmp_path):
    engines = tmp_path / "engines"
    wrong = put(engines, "encoder", [Profile.fixed(WIDE)])
    turned = engine_path(engines, "encoder", "static", ".trt", Resolution(1584, 1056))
    wrong.parent.rename(turned.parent)
    placed = make_folder(engines, tmp_path / "out", copy=False)
    (one,) = [one for one in placed if one.status == "refused"]
    assert "found 1584x1056, expected 1056x1584" in one.reason


@pytest.mark.parametrize(
    "profiles",
    [
        NINE[:8],
        (*NINE[:6], replace(NINE[6], max=Resolution(1920, 1088)), *NINE[7:]),
        (NINE[1], NINE[0], *NINE[2:]),
    ],
    ids=["one too few", "one too narrow", "another order"],
)
def test_ranges_that_do_not_hold_what_it_picks_are_refused(tmp_path, profiles):
    engines = tmp_path / "engines"
    put(engines, "decoder", profiles, mode="profiles")
    placed = make_folder(engines, tmp_path / "out", copy=False)
    (one,) = [one for one in placed if one.status == "refused"]
    assert "picks a profile that does not hold them" in one.reason
    assert "qvae build --mode profiles" in one.fix


def test_a_foreign_and_a_damaged_engine_are_refused(tmp_path):
    engines = tmp_path / "engines"
    damaged = put(engines, "encoder", [Profile.fixed(WIDE)])
    damaged.write_bytes(b"something else of another length")
    stranger = put(engines, "decoder", [Profile.fixed(WIDE)])
    store.sidecar_path(stranger).unlink()
    placed = make_folder(engines, tmp_path / "out", copy=False)
    reasons = [one.reason for one in placed if one.status == "refused"]
    assert len(reasons) == 2
    assert "cut short" in reasons[0] and "no sidecar" in reasons[1]


def test_faults_of_the_two_folders(engines, tmp_path):
    with pytest.raises(EngineError, match="no such folder"):
        make_folder(tmp_path / "none", tmp_path / "out", copy=False)
    for out in (engines, engines / "static" / ".."):
        with pytest.raises(UsageError, match="is the engine folder"):
            make_folder(engines, out, copy=False)
    (tmp_path / "piped" / "static" / "1_1").mkdir(parents=True)
    os.mkfifo(pipe := tmp_path / "piped" / "static" / "1_1" / "vae_encoder.trt")
    with pytest.raises(StoreError, match="cannot write"):
        make_folder(engines, tmp_path / "piped", copy=False)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot write"):
        make_folder(engines, tmp_path / "file", copy=False)


def test_the_command(engines, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["lightx2v", "--engine-dir", str(engines), "--out", str(out)]
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {one["status"] for one in told["engines"]} == {"linked"}
    assert told["configurations"] == {
        mode: {
            "vae_type": "tensorrt",
            "trt_vae_config": {
                "trt_engine_path": str(out / mode),
                "multi_profile": mode == "profiles",
            },
        }
        for mode in ("static", "profiles")
    }
    assert main(command) == 0
    shown = capsys.readouterr()
    assert '"multi_profile": true' in shown.out
    assert shown.err == ""


def test_the_command_names_what_is_missing(tmp_path, capsys):
    engines = tmp_path / "engines"
    engines.mkdir()
    command = ["lightx2v", "--engine-dir", str(engines), "--out", str(tmp_path / "out")]
    assert main(command) == 1
    told = capsys.readouterr().err
    for mode in MODES:  # all sizes need no names
        assert f"qvae build --mode {mode} --backend tensorrt --engine-dir {engines}" in told
    for part in PARTS:
        put(engines, part, [Profile.fixed(WIDE)])
    assert main(command) == 0
    told = capsys.readouterr().err
    assert "--resolution 1328x1328" in told
    assert f"--resolution {WIDE}" not in told
