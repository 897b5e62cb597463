"""`qvae doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from qvae_trt.cli import options, output
from qvae_trt.cli.drawing import records
from qvae_trt.json_rows import write
from qvae_trt.version import __version__


def doctor(engine_dir: Path = options.ENGINE_DIR_OPTION) -> int:
    """Check this machine and show fixes."""
    from qvae_trt.doctor import diagnose

    checks = diagnose(engine_dir)
    ok = all(check.status != "fail" for check in checks)
    output.emit({"qvae": __version__, "ok": ok, "checks": write(checks)}, _draw)
    return 0 if ok else 1


def _draw(data: dict[str, Any]) -> RenderableType:
    """Each fix is a paragraph of its own: in a narrow column its command could not be copied."""
    fixes = [
        Text.assemble((f"{check['name']}: ", "bold"), check["fix"], no_wrap=True, overflow="ignore")
        for check in data["checks"]
        if check["fix"] is not None
    ]
    return Group(
        records(data["checks"], {"": "status", "what": "name", "found": "detail"}),
        *([Text("\nFixes", style="bold"), *fixes] if fixes else []),
    )
