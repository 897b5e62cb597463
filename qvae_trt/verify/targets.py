"""At which sizes each engine is to be verified."""

from __future__ import annotations

from collections.abc import Sequence

from qvae_trt.profiles import Profile, Resolution, nearest


def sizes_of(
    profiles: Sequence[Profile], *, asked: Sequence[Resolution] = (), every_profile: bool
) -> list[tuple[Resolution, int]]:
    """The sizes to verify an engine at, each with its profile: small sizes first.

    A static engine runs at its size. An engine with profiles runs at the opt of every profile,
    where kernels are chosen for each profile (`every_profile`), else at the smallest and the
    largest opt; and at one size that is no opt, inside the profile with the smallest opt, which
    must work as well.

    Args:
        asked: only these sizes, those that the engine holds.
    """
    if asked:
        sizes = list(asked)
    else:
        opts = sorted((p.opt for p in profiles), key=lambda r: (r.pixels, r))
        sizes = opts if every_profile else [opts[0], opts[-1]]
        sizes += [between] if (between := off_grid(profiles)) is not None else []
    ordered = sorted(set(sizes), key=lambda r: (r.pixels, r))
    served = [(size, nearest(size, profiles)) for size in ordered]
    return [(size, index) for size, index in served if index is not None]


def left_out(profiles: Sequence[Profile], sizes: Sequence[tuple[Resolution, int]]) -> str | None:
    """Says how many opts are checked, if not all are (one graph serves all profiles); else None."""
    opts = {p.opt for p in profiles}
    checked = opts & {size for size, _ in sizes}
    if checked == opts:
        return None
    return f"{len(checked)} of {len(opts)} opts checked, since one graph serves all"


def ends_of(
    profiles: Sequence[Profile], *, every_profile: bool, besides: Sequence[tuple[Resolution, int]]
) -> list[tuple[Resolution, int]]:
    """Where the ranges of an engine end, each with its profile: what no opt shows to run.

    Of one graph for all profiles, the smallest and the largest size.

    Args:
        besides: sizes that are run anyway.
    """
    ends = [(end, index) for index, p in enumerate(profiles) for end in (p.min, p.max)]
    ends.sort(key=lambda end: (end[0].pixels, end[0]))
    return [end for end in (ends if every_profile else [ends[0], ends[-1]]) if end not in besides]


def off_grid(profiles: Sequence[Profile]) -> Resolution | None:
    """A size that is the opt of no profile, in the profile with the smallest opt that has room for
    one.
    """
    opts = {p.opt for p in profiles}
    for profile in sorted(profiles, key=lambda p: (p.opt.pixels, p.opt)):
        low, high = profile.min, profile.max
        height = _step(low.height + 0.3 * (profile.opt.height - low.height), low.height)
        width = _step(profile.opt.width + 0.1 * (high.width - profile.opt.width), low.width)
        size = Resolution(height, width)
        if size not in opts and profile.holds(size):
            return size
    return None


def _step(side: float, low: int) -> int:
    return max(low, round(side / 16) * 16)
