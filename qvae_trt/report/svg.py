"""Grouped horizontal bars as SVG, legible from a phone to a slide, in light and in dark.

What is where is planned here, and drawn by `data/templates/chart.svg.jinja`. Text is measured with
an upper estimate of a sans-serif's widths, so that nothing overlaps.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

from qvae_trt.report.templates import render

_GROUP_GAP = 11
_TEXT = 12.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A value with the whisker from `low` to `high`."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Groups of bars, one bar a series. A group may lack a series.

    Attributes:
        best: by group, the series whose value is printed bold.
    """

    title: str
    subtitle: str
    series: tuple[str, ...]
    text: Callable[[float], str]
    groups: Mapping[str, Mapping[str, Bar]] = field(default_factory=dict)
    best: Mapping[str, str | None] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    reference: float | None = None


def document(charts: Sequence[Chart], *, width: int, columns: int = 1, alone: bool = True) -> str:
    """One SVG of several charts in columns; `alone` carries its style sheet and its background."""
    gap = 28
    margin = 16 if alone else 4
    inner = (width - 2 * margin - gap * (columns - 1)) / columns
    panels: list[_Panel] = []
    top = float(margin)
    for start in range(0, len(charts), columns):
        row = [
            _Panel(chart, inner, x=margin + place * (inner + gap), y=top)
            for place, chart in enumerate(charts[start : start + columns])
        ]
        panels += row
        top += max(panel.height for panel in row) + gap
    sides = (width, top - gap + margin)
    return render("chart.svg.jinja", charts=charts, panels=panels, sides=sides, alone=alone)


class _Panel:
    """Where everything of one chart is; all but `x` and `y` from its own top left.

    Attributes:
        legend: name, label, x and base line of each series that has a bar.
        groups: label, bars in the order of the series, and top.
        top, bottom: of the lines at the ticks.
    """

    bar: Final = 14
    step: Final = 17

    def __init__(self, chart: Chart, width: float, *, x: float, y: float) -> None:
        self.chart, self.x, self.y = chart, x, y
        self.title = _wrap(chart.title, width, 15.0, bold=True)
        self.subtitle = _wrap(chart.subtitle, width, _TEXT)
        below = 30.0 + 19 * len(self.title) + 16 * len(self.subtitle)
        self.legend = _legend(chart, width, below)
        self.top = (self.legend[-1][3] if self.legend else below) + 12
        self.groups = []
        y = self.top + 4
        for label, given in chart.groups.items():
            bars = {name: given[name] for name in chart.series if name in given}
            self.groups.append((label, bars, y))
            y += self.step * len(bars) + _GROUP_GAP
        self.bottom = y - _GROUP_GAP + 4
        self.height = self.bottom + 20
        all_bars = [bar for _, bars, _ in self.groups for bar in bars.values()]
        widths = [text_width(chart.text(bar.value), _TEXT, bold=True) for bar in all_bars]
        self._left = 10 + max((text_width(label, _TEXT) for label in chart.groups), default=0)
        self._span = max(width - self._left - 8 - max(widths, default=0), 40.0)
        most = max([chart.reference or 0, *(max(bar.value, bar.high or 0) for bar in all_bars)])
        self.ticks = ticks_for(most, self._span)
        self._reach = max(most, self.ticks[-1]) or 1.0

    def at(self, value: float) -> float:
        """Where a value is, from the left."""
        return self._left + self._span * value / self._reach


def _legend(chart: Chart, width: float, y: float) -> list[tuple[str, str, float, float]]:
    placed = []
    x = 0.0
    for name in chart.series:
        if not any(name in bars for bars in chart.groups.values()):
            continue
        label = fit(chart.labels.get(name, name), width - 20, _TEXT)
        wide = 18 + text_width(label, _TEXT)
        if x > 0 and x + wide > width:
            x, y = 0.0, y + 18
        placed.append((name, label, x, y))
        x += wide + 16
    return placed


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
