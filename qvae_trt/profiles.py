"""Sizes, ranges of sizes, the files that list them, and which engine serves which size.

Shapes live in `profiles/*.toml` only; engine paths are made in `engine_path` only. Sizes are
`(height, width)` in code and `WxH` in print and in the TOML files; `Resolution.parse` and `str` are
where the two meet.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from qvae_trt.errors import ResolutionError, UsageError
from qvae_trt.files.values import Value, in_words, read_toml
from qvae_trt.json_rows import read

Part = Literal["encoder", "decoder"]
Mode = Literal["static", "profiles"]
Precision = Literal["fp16", "bf16", "fp32"]
PARTS: tuple[Part, ...] = ("encoder", "decoder")
MODES: tuple[Mode, ...] = ("static", "profiles")
#: What builds and runs engines: `--backend`, and the flavour in their sidecars. With the suffix of
#: its engines; of two with the same, the first one opens a file that has no sidecar.
BACKENDS = {"tensorrt": ".trt", "tensorrt_rtx": ".trt", "onnxruntime": ".onnx"}

SIDE_MULTIPLE = 8  # the VAE halves each side three times
MAX_SIDE = 16384
_ASPECT = re.compile(r"([1-9][0-9]{0,3}):([1-9][0-9]{0,3})")
# 1664x928 is 0.9 % off 16:9, the furthest of the seven; swapped sides are off by a factor.
_ASPECT_TOLERANCE = 0.03
_SIZE = re.compile(r"([0-9]{1,20})[xX]([0-9]{1,20})")
# As people also write two numbers; never read, so that a size has one name in files and folders.
_TWO_NUMBERS = re.compile(r"([0-9]{1,5})\s*[xX×*,:/]\s*([0-9]{1,5})")


@dataclass(frozen=True, slots=True, order=True)
class Resolution:
    """Height and width in pixels, any numbers; `check` says whether the VAE takes them."""

    height: int
    width: int

    @classmethod
    def parse(cls, text: str) -> Resolution:
        """`"1664x928"` (width first) -> `Resolution(height=928, width=1664)`.

        Raises:
            ResolutionError: not `WxH`, or refused by `check`.
        """
        match = _SIZE.fullmatch(text.strip())
        if match is None:
            near = meant_size(text)
            raise ResolutionError(
                f"{in_words(text)} is not a size: expected WIDTHxHEIGHT in pixels",
                fix="for example 1664x928 (16:9)" if near is None else f"write it as {near}",
            )
        return cls(height=int(match[2]), width=int(match[1])).check()

    def check(self) -> Resolution:
        """Itself, if both sides are multiples of 8 from 8 to 16384; else ResolutionError."""
        for name, side in (("width", self.width), ("height", self.height)):
            if not 0 < side <= MAX_SIDE:
                raise ResolutionError(
                    f"{self}: the {name} is {side}, expected {SIDE_MULTIPLE} to {MAX_SIDE}"
                )
        for name, side in (("width", self.width), ("height", self.height)):
            if side % SIDE_MULTIPLE:
                raise ResolutionError(
                    f"{self}: the {name} is {side}, expected a multiple of {SIDE_MULTIPLE}",
                    fix=f"the nearest size that every engine takes is {self.rounded(16)}",
                )
        return self

    def rounded(self, step: int) -> Resolution:
        """The nearest size whose sides are multiples of `step`, and not 0."""
        high, wide = (max(1, round(side / step)) * step for side in (self.height, self.width))
        return Resolution(high, wide)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @property
    def pixels(self) -> int:
        return self.height * self.width


@dataclass(frozen=True, slots=True)
class Profile:
    """A range of sizes. An engine runs all of it; its kernels are the fastest ones at `opt`."""

    min: Resolution
    opt: Resolution
    max: Resolution

    @classmethod
    def fixed(cls, resolution: Resolution) -> Profile:
        return cls(resolution, resolution, resolution)

    @property
    def fault(self) -> str | None:
        """Why no engine can have this range: its opt is outside. None if it is sound."""
        outside = self.refusal(self.opt)
        return outside and f"{outside}, expected min <= opt <= max"

    def holds(self, resolution: Resolution) -> bool:
        return self.refusal(resolution) is None

    def refusal(self, resolution: Resolution) -> str | None:
        """Why the range does not hold the size; None if it does."""
        sides = (
            ("width", resolution.width, self.min.width, self.max.width),
            ("height", resolution.height, self.min.height, self.max.height),
        )
        outside = [
            f"{name} {v} is not in {lo}..{hi}" for name, v, lo, hi in sides if not lo <= v <= hi
        ]
        return ", ".join(outside) or None

    def distance(self, resolution: Resolution) -> float:
        """|ln of the areas' ratio| + |ln of the aspects' ratio| between a size and `opt`.

        With a and b the logarithms of the two side ratios this is |a + b| + |a - b| = 2 max(|a|,
        |b|): the side that is furthest off decides, and half and double are equally far.
        """
        return 2 * max(
            abs(math.log(resolution.height / self.opt.height)),
            abs(math.log(resolution.width / self.opt.width)),
        )

    def __str__(self) -> str:
        if self.min == self.max:
            return str(self.opt)
        return f"{self.opt} ({self.min} to {self.max})"


# --- which engine serves a size -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an engine cannot be used; `absent` where there is none."""

    reason: str
    absent: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to serve a size, and why it is taken or not; `absent` where there is no engine."""

    name: str
    reason: str
    accepted: bool = True
    path: Path | None = None
    profile_index: int | None = None
    absent: bool = False

    @classmethod
    def refused(cls, name: str, why: Refusal, path: Path | None = None) -> Candidate:
        return cls(name, why.reason, accepted=False, path=path, absent=why.absent)

    def passed_over(self, reason: str) -> Candidate:
        """If it could serve: another one comes before it."""
        return replace(self, reason=reason, accepted=False) if self.accepted else self

    def __str__(self) -> str:
        return f"{'+' if self.accepted else '-'} {self.name}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Choice:
    """The way taken for a size, and all ways considered, in order. One candidate is accepted."""

    resolution: Resolution
    engine: Literal["static", "profiles", "fused", "folded"]
    profile_index: int | None
    candidates: tuple[Candidate, ...]

    @property
    def path(self) -> Path | None:
        """The engine file, where the caller named one."""
        return next((c.path for c in self.candidates if c.accepted), None)

    def explain(self) -> str:
        """One line for each candidate; the accepted one starts with `+`."""
        return "\n".join(str(candidate) for candidate in self.candidates)


def choose(
    resolution: Resolution,
    *,
    static: Path | Refusal | None,
    profiles: Sequence[Profile] | Refusal,
    profiles_path: Path | None = None,
) -> Choice:
    """Static engine of exactly this size, else the nearest profile that holds it, else none: the
    folded network.

    Args:
        resolution: the picture's size.
        static: the file of the static engine of that size; None for one that is only planned; or
            why none can be used.
        profiles: the ranges of the profiles engine, in its order, or why it cannot be used.
        profiles_path: the profiles engine, passed through to the candidates.
    """
    if isinstance(static, Refusal):
        found = [Candidate.refused("static", static)]
    else:
        found = [Candidate("static", f"built for exactly {resolution}", path=static)]
    if isinstance(profiles, Refusal):
        found.append(Candidate.refused("profiles", profiles, profiles_path))
    else:
        found.extend(_weigh(resolution, profiles, profiles_path))
    found.append(Candidate("folded", "no engine serves this size"))
    return _first(resolution, found)


def with_fused(choice: Choice, fused: str | Refusal) -> Choice:
    """The choice with the fused path before the folded network.

    Args:
        fused: why it is taken, also in place of an engine, or why it is not.
    """
    *engines, folded = choice.candidates
    if isinstance(fused, Refusal):
        return replace(choice, candidates=(*engines, Candidate.refused("fused", fused), folded))
    passed = [engine.passed_over("it can serve, and fused is preferred") for engine in engines]
    last = replace(folded, accepted=True)
    return _first(choice.resolution, [*passed, Candidate("fused", fused), last])


def _first(resolution: Resolution, candidates: Sequence[Candidate]) -> Choice:
    """The choice of the first that can serve."""
    first = next(c for c in candidates if c.accepted)
    reason = f"{first.name} serves this size"
    passed = (c if c is first else c.passed_over(reason) for c in candidates)
    engine: Any = first.name if first.profile_index is None else "profiles"
    return Choice(resolution, engine, first.profile_index, tuple(passed))


def nearest(resolution: Resolution, profiles: Sequence[Profile]) -> int | None:
    """The profile that serves a size: of those that hold it the one of the smallest
    `Profile.distance`, the first of equals; None where none holds it, however near its `opt`.
    """
    holding = [index for index, profile in enumerate(profiles) if profile.holds(resolution)]
    return min(holding, key=lambda index: profiles[index].distance(resolution), default=None)


def _weigh(
    resolution: Resolution, profiles: Sequence[Profile], path: Path | None
) -> Iterator[Candidate]:
    best = nearest(resolution, profiles)
    for index, profile in enumerate(profiles):
        distance, refusal = f"{profile.distance(resolution):.3f}", profile.refusal(resolution)
        if refusal is not None:
            reason = refusal
        elif index == best:
            reason = f"holds it, nearest opt (distance {distance})"
        else:
            reason = f"holds it, further than profile {best} (distance {distance})"
        yield Candidate(f"profile {index} {profile.opt}", reason, index == best, path, index)


# --- names of files -----------------------------------------------------------------------------


def parse_aspect(name: str, *, sizes: Mapping[str, Resolution] | None = None) -> Resolution:
    """`"16:9"` -> its static size. UsageError, listing the known ones, for any other name."""
    known = load_static_sizes() if sizes is None else sizes
    if name not in known:
        near, other = meant_aspect(name), "any other size: --resolution WIDTHxHEIGHT"
        raise UsageError(
            f"{in_words(name)} is not a known aspect ratio: expected one of {', '.join(known)}",
            fix=f"write it as {near}" if near in known else other,
        )
    return known[name]


def meant_size(text: str) -> Resolution | None:
    """The size that a text such as `1024*1024`, `1024,1024` or `1024` (a square) means, if the VAE
    takes it.
    """
    text = text.strip()
    match = _TWO_NUMBERS.fullmatch(f"{text}x{text}" if text.isdecimal() else text)
    if match is None:
        return None
    with contextlib.suppress(ResolutionError):
        return Resolution(height=int(match[2]), width=int(match[1])).check()
    return None


def meant_aspect(text: str) -> str | None:
    """`16x9` -> `16:9`: an aspect ratio of Qwen-Image, however it is written."""
    match = _TWO_NUMBERS.fullmatch(text.strip())
    near = None if match is None else f"{int(match[1])}:{int(match[2])}"
    return near if near in load_static_sizes() else None


def engine_path(
    engine_dir: Path, part: Part, mode: Mode, suffix: str, resolution: Resolution | None = None
) -> Path:
    """Where an engine lives under `engine_dir`; `suffix` is the backend's (`.trt`, `.onnx`), and
    `resolution` that of a static engine.
    """
    if mode == "profiles":
        return engine_dir / "profiles" / f"vae_{part}_multi_profile{suffix}"
    return engine_dir / "static" / str(resolution) / f"vae_{part}{suffix}"


# --- reading the files --------------------------------------------------------------------------


def _only(path: Path, name: str, kind: type, expected: str) -> Value:
    """The one value that a TOML file may hold, which is of this kind and not empty."""
    top = read_toml(path)
    top.only(name)
    value = top.inside(name, top.data.get(name))
    if not isinstance(value.data, kind) or not value.data:
        value.refuse(expected)
    return value


def load_static_sizes(path: Path | None = None) -> dict[str, Resolution]:
    """The static sizes by aspect (`"16:9"`), in the file's order; by default Qwen-Image's.

    Raises:
        ProfileError: the file cannot be read or is malformed; names the file and the line.
    """
    what = 'expected a [sizes] table of lines such as "16:9" = "1664x928"'
    table = _only(path or own_file("static.toml"), "sizes", dict, what)
    sizes: dict[str, Resolution] = read(Mapping[str, Resolution], table)
    for (aspect, size), line in zip(sizes.items(), table.fields().values(), strict=True):
        sides = _ASPECT.fullmatch(aspect)
        if sides is None:
            line.refuse("is not an aspect ratio: expected two numbers, such as 16:9")
        wide, high = int(sides[1]), int(sides[2])
        if abs(math.log(size.width * high / (size.height * wide))) > _ASPECT_TOLERANCE:
            line.refuse(
                f"{size}: width / height is {size.width / size.height:.3f}, expected about"
                f" {wide / high:.3f} (sides swapped?)"
            )
        first = next(other for other, known in sizes.items() if known == size)
        if first != aspect:
            line.refuse(f"repeats {first}, {size}")
    return sizes


def load_profiles(path: Path | None = None) -> tuple[Profile, ...]:
    """The optimization profiles, in the file's order; by default the nine of
    Qwen-Image.

    Raises:
        ProfileError: the file cannot be read or is malformed; names the file and the line.
    """
    what = "expected at least one [[profile]] with min, opt and max"
    tables = _only(path or own_file("nine.toml"), "profile", list, what)
    profiles: tuple[Profile, ...] = read(tuple[Profile, ...], tables, strict=True)
    for index, (profile, table) in enumerate(zip(profiles, tables.items(), strict=True)):
        if profile.fault is not None:
            table["opt"].refuse(profile.fault)
        if profiles.index(profile) < index:
            table.refuse(f"repeats profile {profiles.index(profile)}")
    return profiles


def own_file(name: str) -> Path:
    package = Path(__file__).resolve().parent
    installed = package / "data" / "profiles" / name
    return installed if installed.is_file() else package.parent / "profiles" / name
