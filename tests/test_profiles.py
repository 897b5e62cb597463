"""Sizes, the two TOML files, the choice of an engine, and names of engine files."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qvae_trt.commands import (
    build_command,
    command_line,
    complete,
    option_in,
    rebuild_command,
)
from qvae_trt.errors import ProfileError, ResolutionError, UsageError
from qvae_trt.profiles import (
    Profile,
    Refusal,
    Resolution,
    choose,
    engine_path,
    load_profiles,
    load_static_sizes,
    parse_aspect,
)

R = Resolution
ABSENT = Refusal("no engine with profiles", absent=True)
NO_STATIC = Refusal("no static engine of that size", absent=True)
NINE = (
    (512, 512),
    (1024, 1024),
    (480, 848),
    (720, 1280),
    (1088, 1920),
    (1280, 720),
    (1920, 1088),
    (768, 1024),
    (1088, 1632),
)
SEVEN = {
    "16:9": (1664, 928),
    "9:16": (928, 1664),
    "1:1": (1328, 1328),
    "4:3": (1472, 1104),
    "3:4": (1104, 1472),
    "3:2": (1584, 1056),
    "2:3": (1056, 1584),
}


# --- sizes ---


def test_text_has_the_width_first_and_code_the_height():
    size = Resolution.parse("1664x928")
    assert (size.height, size.width) == (928, 1664)
    assert size == R(928, 1664)
    assert str(size) == "1664x928"
    assert size.pixels == 1664 * 928


@pytest.mark.parametrize("text", ["1664X928", " 1664x928\n", "01664x928"])
def test_lenient_spellings(text):
    assert Resolution.parse(text) == R(928, 1664)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not a size"),
        ("1664", "is not a size"),
        ("1664x", "is not a size"),
        ("1664x928x3", "is not a size"),
        ("-8x8", "is not a size"),
        ("1e3x8", "is not a size"),
        ("１６x16", "is not a size"),
        ("x" * 500, "..."),
        ("0x0", "the width is 0, expected 8 to 16384"),
        ("8x0", "the height is 0"),
        ("99999x99999", "the width is 99999, expected 8 to 16384"),
        ("16x16392", "the height is 16392"),
        ("1000x1001", "the height is 1001, expected a multiple of 8"),
        ("1001x1000", "the width is 1001, expected a multiple of 8"),
        ("9" * 20 + "x8", "expected 8 to 16384"),
    ],
)
def test_what_is_no_size_says_why(text, says):
    with pytest.raises(ResolutionError) as caught:
        Resolution.parse(text)
    assert says in caught.value.what
    assert len(caught.value.what) < 200
    assert caught.value.exit_code == 2


def test_an_odd_size_is_told_the_nearest_good_one():
    with pytest.raises(ResolutionError) as caught:
        Resolution.parse("1000x1001")
    assert caught.value.fix is not None
    assert caught.value.fix.endswith("992x1008")


@given(st.text() | st.from_regex(r"[0-9]{1,6}x[0-9]{1,6}", fullmatch=True))
def test_any_text_is_a_good_size_or_a_resolution_error(text):
    try:
        size = Resolution.parse(text)
    except ResolutionError:
        return
    assert 0 < size.height <= 16384 and size.height % 8 == 0
    assert 0 < size.width <= 16384 and size.width % 8 == 0
    assert Resolution.parse(str(size)) == size


# --- the project's own files ---


def test_static_sizes_are_the_contracts_in_its_order():
    sizes = load_static_sizes()
    assert [(name, (r.width, r.height)) for name, r in sizes.items()] == list(SEVEN.items())


def test_static_sizes_are_a_copy():
    load_static_sizes().clear()
    assert len(load_static_sizes()) == 7


def test_profiles_are_the_contracts_in_its_order():
    assert tuple((p.opt.height, p.opt.width) for p in load_profiles()) == NINE


def test_ranges_are_multiples_of_16_and_begin_at_256():
    for p in load_profiles():
        for r in (p.min, p.opt, p.max):
            assert r.height % 16 == 0 and r.width % 16 == 0
            assert min(r.height, r.width) >= 256


# --- files that people write ---


GOOD = '[[profile]]\nmin = "256x256"\nopt = "512x512"\nmax = "1024x768"\n'


def _write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "mine.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_profiles_file(tmp_path):
    path = _write(tmp_path, "# mine\n" + GOOD + GOOD.replace("512x512", "640x512"))
    first, second = load_profiles(path)
    assert first == Profile(R(256, 256), R(512, 512), R(768, 1024))
    assert second.opt == R(512, 640)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (GOOD + '[[profile]]\nmin = "256x256\n', 6, "Illegal character"),
        ("a = 1\n" + GOOD, 1, "a: unknown, expected profile"),
        (GOOD + "\n[extra]\nx = 1\n", 6, "extra: unknown, expected profile"),
        (GOOD + "\n[[extra]]\nx = 1\n", 6, "extra: unknown, expected profile"),
        (GOOD.replace("max", "# \nmost"), 5, "profile[0].most: unknown, expected min, opt, max"),
        (GOOD + "\n[[profile]]\nmin = '16x16'\nopt = '16x16'\n", 6, "profile[1].max: missing"),
        (GOOD.replace('"512x512"', "512"), 3, "profile[0].opt: expected text, found 512"),
        (GOOD.replace('"512x512"', "true"), 3, "opt: expected text, found true"),
        (GOOD.replace('"512x512"', "[512, 512]"), 3, "opt: expected text, found a list"),
        (GOOD.replace("512x512", "513x512"), 3, "multiple of 8"),
        (GOOD.replace("512x512", "513x512").replace("\n", "\r\n").encode(), 3, "multiple of 8"),
        (
            GOOD.replace("512x512", "513x512") + '[[profile]]\nmin = """\\\n8x8"""\nopt = "8x8"\n',
            3,
            "multiple of 8",
        ),
        (GOOD.replace("512x512", "512×512"), 3, '"512×512" is not a size'),
        (GOOD.replace("512x512", "512"), 3, "is not a size"),
        (GOOD.replace("512x512", "0x512"), 3, "the width is 0"),
        (
            GOOD.replace("256x256", "640x256"),
            3,
            "width 512 is not in 640..1024, expected min <= opt <= max",
        ),
        (GOOD.replace("1024x768", "1024x256"), 3, "expected min <= opt <= max"),
        (GOOD + "# again\n" + GOOD, 6, "profile[1]: repeats profile 0"),
        (GOOD.replace('opt = "512x512"', 'opt = "512x512"\nopt = "8x8"'), 4, "overwrite"),
        ("", 1, "expected at least one [[profile]]"),
        ("profile = 3\n", 1, "expected at least one [[profile]]"),
        ("\nprofile = []\n", 2, "expected at least one [[profile]]"),
        ("\nprofile = [1]\n", 2, "profile[0]: expected a table of names and values, found 1"),
        ("\n\nprofile = [{min='8x8', opt='7x8', max='8x8'}]\n", 3, "multiple of 8"),
        ("[profile]\nmin = '8x8'\n", 1, "expected at least one [[profile]]"),
        (b"[[profile]]\n# ok\n# \xff\xfe\n", 3, "not UTF-8"),
        ("x = " + "[" * 100_000, 1, ""),
        ("\nx = " + "9" * 5000 + "\n\n", 2, "a number too long"),
        (GOOD + "x\u2028y = 1\n", 5, ""),
    ],
)
def test_a_malformed_profiles_file_names_file_and_line(tmp_path, text, line, says):
    path = _write(tmp_path, text)
    with pytest.raises(ProfileError) as caught:
        load_profiles(path)
    assert caught.value.what.startswith(f"{path}, line {line}: "), caught.value.what
    assert says in caught.value.what
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ('[sizes]\n"16:9" = "1664x928"\n"16:9" = "8x8"\n', 3, "overwrite"),
        ('[sizes]\n"16:9" = "928x1664"\n', 2, "sides swapped?"),
        (
            '[sizes]\n"4:3" = "1472x1144"\n',
            2,
            "sizes.4:3: 1472x1144: width / height is 1.287, expected about 1.333",
        ),
        ('[sizes]\n"1:1" = "512x512"\n"2:2" = "512x512"\n', 3, "2:2: repeats 1:1"),
        ('[sizes]\n\n"../x" = "8x8"\n', 3, "is not an aspect ratio"),
        *(
            (f'[sizes]\n"1:1" = "512x512"\n"{name}" = "8x8"\n', 3, "is not an aspect ratio")
            for name in ("01:1", "../..", "..:..", "0:1", "16:9/..", "१:१", "1:1 ", "16_9")
        ),
        ('[sizes]\n"1:1" = 512\n', 2, "sizes.1:1: expected text, found 512"),
        ("[sizes]\n", 1, "expected a [sizes] table"),
        ("# nothing\n", 1, "expected a [sizes] table"),
        ("\nsizes = 3\n", 2, "expected a [sizes] table"),
        ('more = 1\n[sizes]\n"1:1" = "512x512"\n', 1, "more: unknown, expected sizes"),
    ],
)
def test_a_malformed_sizes_file_names_file_and_line(tmp_path, text, line, says):
    path = _write(tmp_path, text)
    with pytest.raises(ProfileError) as caught:
        load_static_sizes(path)
    assert caught.value.what.startswith(f"{path}, line {line}: "), caught.value.what
    assert says in caught.value.what


@pytest.mark.parametrize("load", [load_profiles, load_static_sizes])
def test_a_file_that_cannot_be_read(tmp_path, load):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "large").write_bytes(b"#" * (2 << 20))
    for path, says in (
        (tmp_path / "none.toml", "No such file"),
        (tmp_path, "directory"),
        (tmp_path / "loop", "symbolic links"),
        (tmp_path / ("n" * 300), "name too long"),
        (Path("a\0b"), "null byte"),
        (tmp_path / "large", "more than 1048576 bytes"),
    ):
        with pytest.raises(ProfileError) as caught:
            load(path)
        assert says in caught.value.what


_toml_value = st.sampled_from(
    ['"512x512"', '"8x8"', '"16x8"', '"9x8"', "3", "-1", "true", "[]", "{}", "1979-05-27", "nan"]
)
_toml_line = st.one_of(
    st.sampled_from(["[[profile]]", "[profile]", "[sizes]", "[[sizes]]", "[profile.min]", "", "#"]),
    st.builds(
        "{} = {}".format,
        st.sampled_from(["min", "opt", "max", '"16:9"', '"1:1"', "profile", "sizes", "a.b"]),
        _toml_value,
    ),
    st.text(max_size=12),
)


@given(st.lists(_toml_line, max_size=14).map("\n".join) | st.binary(max_size=64))
def test_any_file_is_read_or_a_profile_error(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    for load in (load_profiles, load_static_sizes):
        try:
            assert load(path)
        except ProfileError as error:
            assert error.what.startswith(f"{path}, line ")


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[sizes]\n"1:1" = "512x512"\n', encoding="utf-8-sig")
    assert load_static_sizes(path) == {"1:1": R(512, 512)}
    path.write_text('[sizes]\n"1:1" = 5\n', encoding="utf-8-sig")
    with pytest.raises(ProfileError, match="line 2: "):
        load_static_sizes(path)


# --- the choice ---


def test_a_static_engine_of_exactly_this_size_comes_first(tmp_path):
    choice = choose(R(1024, 1024), static=tmp_path / "a.trt", profiles=load_profiles())
    assert (choice.engine, choice.profile_index) == ("static", None)
    assert choice.path == tmp_path / "a.trt"


def test_without_engines_none_serves():
    choice = choose(R(1024, 1024), static=NO_STATIC, profiles=ABSENT)
    assert choice.engine == "folded"
    assert choice.path is None
    assert [candidate.absent for candidate in choice.candidates] == [True, True, False]


def test_an_unusable_static_engine_gives_its_reason():
    choice = choose(
        R(512, 512),
        static=Refusal("other GPU"),
        profiles=load_profiles(),
    )
    assert choice.engine == "profiles"
    assert choice.candidates[0].reason == "other GPU"
    assert not choice.candidates[0].accepted
    assert not choice.candidates[0].absent


def test_a_nearer_profile_that_does_not_hold_the_size_is_not_taken():
    near = Profile(R(1024, 1024), R(1024, 1024), R(1024, 1024))
    wide = Profile(R(256, 256), R(256, 256), R(2048, 2048))
    choice = choose(R(1024, 1040), static=NO_STATIC, profiles=[near, wide])
    assert choice.profile_index == 1
    assert choice.candidates[1].reason == "width 1040 is not in 1024..1024"


def test_the_nearest_opt_wins_and_the_first_of_equals():
    low, high = R(256, 256), R(2048, 2048)
    small, large = Profile(low, R(512, 512), high), Profile(low, R(1024, 1024), high)
    assert choose(R(576, 576), static=NO_STATIC, profiles=[large, small]).profile_index == 1
    assert choose(R(960, 960), static=NO_STATIC, profiles=[large, small]).profile_index == 0
    assert choose(R(960, 960), static=NO_STATIC, profiles=[small, large, large]).profile_index == 1


def test_the_aspect_counts_as_well_as_the_area():
    low, high = R(256, 256), R(2048, 2048)
    square, portrait = Profile(low, R(1024, 1024), high), Profile(low, R(1280, 720), high)
    assert choose(R(1216, 832), static=NO_STATIC, profiles=[square, portrait]).profile_index == 1
    assert choose(R(832, 1216), static=NO_STATIC, profiles=[square, portrait]).profile_index == 0


def test_distance_is_the_sum_of_both_logarithms():
    from math import log

    profile = Profile.fixed(R(720, 1280))
    size = R(928, 1664)
    area = abs(log(size.pixels / profile.opt.pixels))
    aspect = abs(log((1664 / 928) / (1280 / 720)))
    assert profile.distance(size) == pytest.approx(area + aspect)
    assert profile.distance(profile.opt) == 0


def test_each_opt_gets_its_own_profile():
    profiles = load_profiles()
    for index, profile in enumerate(profiles):
        assert choose(profile.opt, static=NO_STATIC, profiles=profiles).profile_index == index


def test_no_engine_serves_it():
    choice = choose(R(2048, 2048), static=NO_STATIC, profiles=load_profiles())
    assert choice.engine == "folded"
    assert choice.candidates[-1].accepted
    assert len(choice.candidates) == 1 + 9 + 1
    for candidate in choice.candidates[1:-1]:
        assert not candidate.accepted
        assert not candidate.absent, "it is there and does not hold the size"


def test_a_profiles_engine_that_cannot_be_used_gives_its_reason():
    refusal = Refusal("TensorRT 10, not 11")
    choice = choose(R(512, 512), static=NO_STATIC, profiles=refusal)
    assert [c.absent for c in choice.candidates] == [True, False, False]
    assert [c.accepted for c in choice.candidates] == [False, False, True]
    assert choice.engine == "folded"
    assert "- profiles: TensorRT 10, not 11" in choice.explain()


def test_an_engine_without_profiles_serves_nothing():
    assert choose(R(512, 512), static=NO_STATIC, profiles=[]).engine == "folded"


@given(st.integers(1, 300), st.integers(1, 300), st.booleans(), st.booleans())
def test_one_way_is_taken_and_every_way_has_a_reason(h, w, with_static, with_profiles):
    size = R(h * 8, w * 8)
    choice = choose(
        size,
        static=Path("x") if with_static else NO_STATIC,
        profiles=load_profiles() if with_profiles else ABSENT,
    )
    assert sum(c.accepted for c in choice.candidates) == 1
    assert all(c.reason for c in choice.candidates)
    assert not any(c.absent and c.accepted for c in choice.candidates)
    assert len(choice.explain().splitlines()) == len(choice.candidates)
    if choice.profile_index is not None:
        assert load_profiles()[choice.profile_index].holds(size)


# --- names ---


@pytest.mark.parametrize(
    ("part", "mode", "size", "expected"),
    [
        ("encoder", "static", R(928, 1664), "static/1664x928/vae_encoder.trt"),
        ("decoder", "static", R(1664, 928), "static/928x1664/vae_decoder.trt"),
        ("decoder", "static", R(768, 1280), "static/1280x768/vae_decoder.trt"),
        ("encoder", "profiles", None, "profiles/vae_encoder_multi_profile.trt"),
        ("decoder", "profiles", None, "profiles/vae_decoder_multi_profile.trt"),
    ],
)
def test_engine_paths_are_the_contracts(part, mode, size, expected):
    assert engine_path(Path("e"), part, mode, ".trt", size) == Path("e") / expected


def test_every_static_folder_is_its_size():
    for size in load_static_sizes().values():
        folder = engine_path(Path(), "encoder", "static", "", size).parent.name
        assert folder == f"{size.width}x{size.height}"


@pytest.mark.parametrize("name", ["16:10", "", "../..", "..:..", "16_9", "a" * 300, "16:9\0"])
def test_an_unknown_aspect_lists_the_known_ones(name):
    with pytest.raises(UsageError) as caught:
        parse_aspect(name)
    assert "16:9, 9:16, 1:1, 4:3, 3:4, 3:2, 2:3" in caught.value.what
    assert len(caught.value.what) < 200


def test_a_known_aspect():
    assert parse_aspect("3:2") == R(1056, 1584)


@pytest.mark.parametrize(
    ("mode", "size", "words"),
    [
        ("static", R(928, 1664), ["--mode", "static", "--resolution", "1664x928"]),
        ("static", R(768, 1280), ["--mode", "static", "--resolution", "1280x768"]),
        ("profiles", None, ["--mode", "profiles"]),
    ],
)
def test_the_command_that_builds_a_path_again(mode, size, words):
    path = engine_path(Path("my engines"), "decoder", mode, ".onnx", size)
    expected = ["qvae", "build", *words, "--part", "decoder", "--engine-dir", "my engines"]
    assert shlex.split(rebuild_command(path)) == expected


def test_a_command_leaves_out_what_is_the_default(monkeypatch):
    usual = {"model": "Qwen/Qwen-Image", "backend": "auto", "precision": "fp16"}
    assert (
        build_command("static", engine_dir=Path("engines"), **usual) == "qvae build --mode static"
    )
    monkeypatch.setenv("QVAE_ENGINE_DIR", "mine")  # a line is also copied to other shells
    assert build_command("static", engine_dir="mine").endswith("--engine-dir mine")
    assert build_command("static", engine_dir="engines").endswith("--engine-dir engines")
    with pytest.raises(TypeError, match="enginedir"):
        build_command("static", enginedir="mine")


def test_a_path_from_elsewhere_has_the_general_command():
    assert shlex.split(rebuild_command(Path("/tmp/some.trt")))[:3] == ["qvae", "build", "--mode"]


def test_what_a_variable_set_is_said_in_the_command_that_is_kept(monkeypatch):
    line = "qvae build --mode static --aspect 16:9"
    asked = {"model": "bundled:tiny", "backend": "auto", "engine_dir": Path("my engines")}
    assert complete(line, **asked) == line
    monkeypatch.setenv("QVAE_MODEL", "bundled:tiny")
    monkeypatch.setenv("QVAE_ENGINE_DIR", "my engines")
    kept = complete(line, **asked)
    assert kept == f"{line} --model bundled:tiny --engine-dir 'my engines'"
    path = engine_path(Path("my engines"), "decoder", "static", ".onnx", R(928, 1664))
    assert rebuild_command(path, built_by=kept) == kept
    for said in (f"{line} --model other", f"{line} --model=other"):
        assert complete(said, **asked) == f"{said} --engine-dir 'my engines'"


@given(st.lists(st.binary(max_size=6).map(os.fsdecode)))
@example(["$'a", "$'\x1b", "a $'\xff'", "\udcff", "\n", "'\\'"])
def test_a_command_line_is_read_as_it_was_written(words):
    words = [word for word in words if "\0" not in word and not word.startswith("--")]
    line = command_line(["qvae", "--out", *words, "end"])
    first = words[0] if words else "end"
    assert option_in(line, "--out") == first
