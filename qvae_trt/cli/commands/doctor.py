"""`qvae doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qvae_trt.cli import output
from qvae_trt.cli.drawing import stacked, table
from qvae_trt.cli.options import ENGINE_DIR, EngineDirOption, JsonOption, VerboseOption

if TYPE_CHECKING:
    from rich.text import Text

    from qvae_trt.doctor import Diagnosis


def doctor(
    engine_dir: EngineDirOption = ENGINE_DIR,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Check this machine and show fixes."""
    from qvae_trt.doctor import diagnose

    found = diagnose(engine_dir)
    output.emit(
        found.to_dict(),
        lambda: stacked(
            table(("", "what", "found"), [(c.status, c.name, c.detail) for c in found.checks]),
            *_fixes(found),
        ),
    )
    return 0 if found.ok else 1


def _fixes(found: Diagnosis) -> list[Text]:
    """Each in a paragraph of its own: in a narrow column a command could not be copied."""
    from rich.text import Text

    fixes = [
        Text.assemble((f"{check.name}: ", "bold"), check.fix, no_wrap=True, overflow="ignore")
        for check in found.checks
        if check.fix is not None
    ]
    return [Text("\nFixes", style="bold"), *fixes] if fixes else []
