"""What a terminal of a given width shows."""

from __future__ import annotations

import io

from rich.console import Console


def drawn(shown: object, width: int) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width).print(shown)
    return [line.rstrip() for line in file.getvalue().splitlines()]
