"""Engines under a folder, and what each has to be there."""

from __future__ import annotations

from qvae_trt.profiles import Profile, Resolution
from qvae_trt.store import EngineFile, find_engines


def test_engines_are_found_by_the_contracts_names(tmp_path):
    for name in (
        "static/1664x928/vae_encoder.trt",
        "static/1664x928/vae_encoder.trt.json",
        "static/1280x768/vae_decoder.onnx",
        "static/16_9/vae_decoder.onnx",  # as it was named once
        "static/notes/vae_decoder.onnx",
        "profiles/vae_decoder_multi_profile.onnx",
        "profiles/other.onnx",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = [
        (t.path.relative_to(tmp_path).as_posix(), t.part, t.mode) for t in find_engines(tmp_path)
    ]
    assert found == [
        ("static/1280x768/vae_decoder.onnx", "decoder", "static"),
        ("static/1664x928/vae_encoder.trt", "encoder", "static"),
        ("profiles/vae_decoder_multi_profile.onnx", "decoder", "profiles"),
    ]
    assert find_engines(tmp_path / "nowhere") == []


def test_a_place_decides_part_mode_and_size(tmp_path):
    size = Resolution(64, 96)
    static = EngineFile(tmp_path / "a", "encoder", "static", size)
    assert static.place == {
        "part": "encoder",
        "mode": "static",
        "profiles": (Profile.fixed(size),),
    }
    wide = EngineFile(tmp_path / "a", "decoder", "profiles")
    assert wide.place == {"part": "decoder", "mode": "profiles"}
