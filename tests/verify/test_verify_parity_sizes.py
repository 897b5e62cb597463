"""The sizes that engines are run at."""

from __future__ import annotations

from qvae_trt.profiles import Profile, Resolution, load_profiles
from qvae_trt.verify.parity import ends_of, left_out, off_grid, sizes_of


def test_every_profile_is_run_at_its_opt_and_once_off_it():
    nine = load_profiles()
    sizes = sizes_of(nine, every_profile=True)
    assert left_out(nine, sizes) is None
    assert {(p.opt, i) for i, p in enumerate(nine)} <= set(sizes)
    (between,) = {s for s, _ in sizes} - {p.opt for p in nine}
    assert between == off_grid(nine)
    assert between.height % 16 == between.width % 16 == 0
    assert between.height != between.width
    assert any(p.holds(between) for p in nine)
    assert [s.pixels for s, _ in sizes] == sorted(s.pixels for s, _ in sizes)


def test_one_graph_for_all_profiles_is_run_at_its_ends_and_once_between():
    nine = load_profiles()
    compared = sizes_of(nine, every_profile=False)
    assert left_out(nine, compared) == "2 of 9 opts checked, since one graph serves all"
    sizes = [s for s, _ in compared]
    opts = sorted((p.opt for p in nine), key=lambda r: r.pixels)
    assert sizes == [off_grid(nine), opts[0], opts[-1]]


def test_each_range_is_tried_at_the_ends_that_are_not_compared():
    nine = load_profiles()
    compared = sizes_of(nine, every_profile=True)
    ends = ends_of(nine, every_profile=True, besides=compared)
    every = {(end, index) for index, p in enumerate(nine) for end in (p.min, p.max)}
    assert set(ends) == every - set(compared)
    of_one_graph = ends_of(nine, every_profile=False, besides=())
    assert [end for end, _ in of_one_graph] == [
        min((p.min for p in nine), key=lambda size: size.pixels),
        max((p.max for p in nine), key=lambda size: size.pixels),
    ]


def test_sizes_asked_for_are_those_that_the_engine_holds():
    nine = load_profiles()
    asked = [Resolution(512, 512), Resolution(4096, 4096), Resolution(1088, 1920)]
    found = sizes_of(nine, asked=asked, every_profile=True)
    assert [s for s, _ in found] == [asked[0], asked[2]]
    assert found[1][1] == 4
    fixed = (Profile.fixed(Resolution(928, 1664)),)
    assert sizes_of(fixed, asked=asked, every_profile=True) == []
    assert sizes_of(fixed, every_profile=True) == [(Resolution(928, 1664), 0)]


def test_a_fixed_profile_has_no_size_between():
    assert off_grid([Profile.fixed(Resolution(512, 512))]) is None
