"""Grouped horizontal bars as SVG: no library, legible from a phone to a slide, in light and in
dark.

Colours are attributes (for programs that know no CSS) that a style sheet overrides where the reader
prefers dark. Text is measured with an upper estimate of a sans-serif's widths, so that nothing
overlaps.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from xml.sax.saxutils import escape

FONT = "system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans',sans-serif"
_LIGHT = {"surface": "#ffffff", "ink": "#1f2328", "muted": "#59636e", "grid": "#e3e6ea"}
_DARK = {"surface": "#151a21", "ink": "#e8ecf1", "muted": "#9aa4b0", "grid": "#2d343e"}
#: (light, dark) by path, and for series that are files.
_COLOURS = {
    "pytorch": ("#8d95a0", "#7f8894"),
    "folded": ("#3574d4", "#5a96f2"),
    "compiled": ("#8657cf", "#aa86ee"),
    "fused": ("#c2436b", "#ec7396"),
    "static": ("#0b8a69", "#2dbd94"),
    "profiles": ("#d8731a", "#f09a4a"),
}
_SPARE = tuple(
    _COLOURS[path] for path in ("folded", "profiles", "static", "compiled", "fused", "pytorch")
)
_BAR = 14
_STEP = 17
_GROUP_GAP = 11
_TEXT = 12.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A value with the whisker from `low` to `high`; `best` prints it bold."""

    value: float
    low: float | None = None
    high: float | None = None
    best: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Groups of bars, one bar a series. A group may lack a series."""

    title: str
    subtitle: str
    series: tuple[str, ...]
    text: Callable[[float], str]
    groups: tuple[tuple[str, Mapping[str, Bar]], ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    reference: float | None = None


def style() -> str:
    """The style sheet that a document with charts needs once."""
    rules = []
    for theme, colours in enumerate((_LIGHT, _DARK)):
        made = [f".qv-{name}{{fill:{colour}}}" for name, colour in colours.items()]
        made.append(f".qv-line{{stroke:{colours['grid']}}}.qv-whisker{{stroke:{colours['ink']}}}")
        series = _COLOURS | {str(index): pair for index, pair in enumerate(_SPARE)}
        made += [f".qv-s-{name}{{fill:{pair[theme]}}}" for name, pair in series.items()]
        rules.append("".join(made))
    return f"{rules[0]}@media(prefers-color-scheme:dark){{{rules[1]}}}"


def document(charts: Sequence[Chart], *, width: int, columns: int = 1, alone: bool = True) -> str:
    """One SVG of several charts in columns; `alone` carries its style sheet and its background."""
    gap = 28
    margin = 16 if alone else 4
    inner = (width - 2 * margin - gap * (columns - 1)) / columns
    body: list[str] = []
    top = float(margin)
    for start in range(0, len(charts), columns):
        heights = [0.0]
        for place, chart in enumerate(charts[start : start + columns]):
            drawn, height = panel(chart, inner)
            left = margin + place * (inner + gap)
            body.append(f'<g transform="translate({left:.0f},{top:.0f})">{drawn}</g>')
            heights.append(height)
        top += max(heights) + gap
    height = top - gap + margin
    name = escape("; ".join(chart.title for chart in charts))
    describe = escape(" ".join(_spoken(chart) for chart in charts))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" '
        f'width="{width}" '
        f'height="{height:.0f}" role="img" font-family="{FONT}" font-size="{_TEXT:g}">'
        f"<title>{name}</title><desc>{describe}</desc>"
    )
    if alone:
        head += (
            f'<style>{style()}</style><rect class="qv-surface" width="100%" height="100%" rx="8" '
            f'fill="{_LIGHT["surface"]}"/>'
        )
    return head + "".join(body) + "</svg>\n"


def _spoken(chart: Chart) -> str:
    """The figures in words, for screen readers."""
    groups = [
        f"{label}: "
        + ", ".join(f"{chart.labels.get(n, n)} {chart.text(b.value)}" for n, b in bars.items())
        for label, bars in chart.groups
    ]
    return f"{chart.title}. {'. '.join(groups)}."


def panel(chart: Chart, width: float) -> tuple[str, float]:
    """The elements of one chart at the origin, and its height."""
    out: list[str] = []
    y = 16.0
    for line in _wrap(chart.title, width, 15.0, bold=True):
        out.append(_text(0, y, line, size=15, weight=600))
        y += 19
    for line in _wrap(chart.subtitle, width, _TEXT):
        out.append(_text(0, y, line, kind="muted"))
        y += 16
    drawn, y = _legend(chart, width, y + 4)
    out += drawn
    top = y + 2
    all_bars = [bar for _, bars in chart.groups for bar in bars.values()]
    label_width = 10 + max((text_width(label, _TEXT) for label, _ in chart.groups), default=0)
    values = (text_width(chart.text(bar.value), _TEXT, bold=True) for bar in all_bars)
    span = max(width - label_width - 8 - max(values, default=0), 40.0)
    most = max([chart.reference or 0, *(max(bar.value, bar.high or 0) for bar in all_bars)])
    ticks = ticks_for(most, span)
    reach = max(most, ticks[-1]) or 1.0

    def at(value: float) -> float:
        return label_width + span * value / reach

    bars_out: list[str] = []
    y = top + 4
    for label, bars in chart.groups:
        block = _STEP * len(bars) - (_STEP - _BAR)
        bars_out.append(_text(label_width - 10, y + block / 2 + 4, label, anchor="end"))
        for name in (name for name in chart.series if name in bars):
            bars_out.append(_bar(chart, name, bars[name], at, y))
            y += _STEP
        y += _GROUP_GAP
    bottom = y - _GROUP_GAP + 4
    for tick in ticks:
        shown = f"{tick:.3g}" if tick < 1000 else f"{tick:.0f}"
        grid = f'class="qv-line" stroke="{_LIGHT["grid"]}"'
        out.append(_line(at(tick), top, bottom, before=grid))
        out.append(_text(at(tick), bottom + 15, shown, kind="muted", anchor="middle", size=11))
    if chart.reference is not None:
        dashed = f' stroke="{_LIGHT["ink"]}" stroke-dasharray="3 3" opacity=".55"'
        x = at(chart.reference)
        out.append(_line(x, top, bottom, before='class="qv-whisker"', behind=dashed))
    return "".join(out + bars_out), bottom + 20


def _bar(chart: Chart, name: str, bar: Bar, at: Callable[[float], float], y: float) -> str:
    left, end = at(0), at(bar.value)
    tip = f"{chart.labels.get(name, name)}: {chart.text(bar.value)}"
    drawn = _rect(chart, name, left, y, f"{max(end - left, 1):.1f}", _BAR)
    if bar.low is not None and bar.high is not None:
        tip += f" (p10 {chart.text(bar.low)}, p90 {chart.text(bar.high)})"
        low, high = at(bar.low), at(bar.high)
        if high - low >= 1.5:
            middle = y + _BAR / 2
            drawn += (
                f'<path class="qv-whisker" fill="none" stroke="{_LIGHT["ink"]}" opacity=".65" '
                f'd="M{low:.1f} {middle:.1f}H{high:.1f}M{low:.1f} {middle - 3:.1f}v6M{high:.1f} '
                f'{middle - 3:.1f}v6"/>'
            )
            end = max(end, high)
    weight = 700 if bar.best else 400
    value = _text(end + 6, y + _BAR / 2 + 4, chart.text(bar.value), weight=weight)
    return f"<g><title>{escape(tip)}</title>{drawn}{value}</g>"


def _legend(chart: Chart, width: float, y: float) -> tuple[list[str], float]:
    out: list[str] = []
    x = 0.0
    y += 10
    for name in chart.series:
        if not any(name in bars for _, bars in chart.groups):
            continue
        label = fit(chart.labels.get(name, name), width - 20, _TEXT)
        wide = 18 + text_width(label, _TEXT)
        if x > 0 and x + wide > width:
            x, y = 0.0, y + 18
        out += [_rect(chart, name, x, y - 10, "12", 12), _text(x + 18, y, label)]
        x += wide + 16
    return out, y + 10


def _rect(chart: Chart, name: str, x: float, y: float, width: str, height: int) -> str:
    """A rectangle in the colour of a series."""
    index = chart.series.index(name) % len(_SPARE)
    key, colours = (name, _COLOURS[name]) if name in _COLOURS else (index, _SPARE[index])
    return (
        f'<rect class="qv-s-{key}" fill="{colours[0]}" x="{x:.1f}" y="{y:.1f}" width="{width}" '
        f'height="{height}" rx="2"/>'
    )


def _text(
    x: float,
    y: float,
    text: str,
    *,
    kind: str = "ink",
    anchor: str = "start",
    size: float = _TEXT,
    weight: int = 400,
) -> str:
    extra = "" if anchor == "start" else f' text-anchor="{anchor}"'
    extra += "" if size == _TEXT else f' font-size="{size:g}"'
    extra += "" if weight == 400 else f' font-weight="{weight}"'
    return (
        f'<text class="qv-{kind}" fill="{_LIGHT[kind]}" x="{x:.1f}" y="{y:.1f}"{extra}>'
        f"{escape(text)}</text>"
    )


def _line(x: float, top: float, bottom: float, *, before: str, behind: str = "") -> str:
    ends = f'x1="{x:.1f}" y1="{top:.1f}" x2="{x:.1f}" y2="{bottom:.1f}"'
    return f"<line {before} {ends}{behind}/>"


def ticks_for(most: float, span: float) -> list[float]:
    """Round numbers from 0 to just past `most`, at least 45 pixels apart."""
    if most <= 0:
        return [0.0]
    fitting = max(int(span / 45), 1)
    raw = most / fitting
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw * 0.999)
    return [step * index for index in range(math.ceil(most / step - 1e-9) + 1)]


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """An upper estimate in pixels, after DejaVu Sans, the widest of the usual fonts."""
    em = 0.0
    for sign in text:
        if ord(sign) > 0x2E7F:
            em += 1.0
        elif sign in "ilj.,:;'|! ()[]":
            em += 0.4
        elif sign in "mwMW%@×":
            em += 0.98
        else:
            em += 0.78 if sign.isupper() else 0.64
    return em * size * (1.1 if bold else 1.0)


def fit(text: str, width: float, size: float) -> str:
    """The text, shortened with an ellipsis if it is wider than `width`."""
    if text_width(text, size) <= width:
        return text
    ends = list(accumulate(text_width(sign, size) for sign in text))
    kept = bisect_right(ends, width - text_width("…", size))
    return text[:kept].rstrip() + "…"


def _wrap(text: str, width: float, size: float, *, bold: bool = False) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(joined, size, bold=bold) <= width:
            lines[-1] = joined
        else:
            lines.append(fit(word, width, size))
    return lines
