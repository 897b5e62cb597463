"""`qvae doctor`."""

from __future__ import annotations

from qvae_trt.cli import output
from qvae_trt.cli.drawing import table
from qvae_trt.cli.options import ENGINE_DIR, EngineDirOption, JsonOption, VerboseOption


def doctor(
    engine_dir: EngineDirOption = ENGINE_DIR,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """What this machine can do, and what mends it."""
    from qvae_trt.doctor import diagnose

    found = diagnose(engine_dir)
    output.emit(
        found.to_dict(),
        lambda: table(
            ("", "what", "found", "to mend it"),
            [(c.status, c.name, c.detail, c.fix or "") for c in found.checks],
        ),
    )
    return 0 if found.ok else 1
