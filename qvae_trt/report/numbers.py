"""Numbers as text, the same in every form of a report."""

from __future__ import annotations


def ms(value: float | None) -> str:
    """Milliseconds with three or four digits that mean something.

    >>> ms(0.1234), ms(27.55), ms(2304.4), ms(None)
    ('0.12', '27.6', '2304', '–')
    """
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def times(value: float) -> str:
    return f"{value:.0f}×" if value >= 100 else f"{value:.2f}×"


def size(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def share(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value * 100:.0f} %" if value >= 0.01 else f"{value * 100:.2g} %"
