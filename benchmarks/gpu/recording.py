"""What a script of this folder measured, written with the machine and the versions."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvae_trt.bench.machine import machine_facts, version_facts

if TYPE_CHECKING:
    from collections.abc import Callable


def record(name: str, measure: Callable[[], Any], *, about: str) -> None:
    """Reads --out, measures, and writes the result there under this name; prints it too."""
    parser = argparse.ArgumentParser(description=about.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    facts = {"machine": machine_facts("cuda"), "versions": version_facts("cuda")}
    out.write_text(json.dumps({name: measure(), **facts}, indent=1) + "\n", "utf-8")
    print(out.read_text("utf-8"))
