"""Builds that are killed at their n-th step: a program, so that forking is safe.

    python killed_builds.py ENGINE_DIR MOMENT...

For each moment a child process builds anew over the engine that is there, and kills itself
(SIGKILL) at that step. Prints, as JSON, for each moment: whether the child was killed, what was
left, and what the next build said.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import qvae_trt.export
import qvae_trt.model
from qvae_trt import store
from qvae_trt.build import BuildSettings, build, plan_static
from qvae_trt.errors import QvaeError
from qvae_trt.profiles import Resolution

sys.path.insert(0, str(Path(__file__).resolve().parent))
from conftest import Exporter


def build_once(folder: Path, moment: int | None) -> list[Any]:
    """Builds, and dies at the `moment`-th of: every event, every sync of a file to disk."""
    steps = 0

    def step(*_: object) -> None:
        nonlocal steps
        steps += 1
        if steps == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    real = os.fsync
    os.fsync = lambda descriptor: (step(), real(descriptor))[1]
    # No two builds are of the same bytes: half of each would not be told from either.
    fake = Exporter(scale=1 + os.getpid() % 4096 / 4096)
    qvae_trt.model.load_model = fake.load_model  # type: ignore[assignment]
    qvae_trt.export.export_onnx = fake.export_onnx  # type: ignore[assignment]
    qvae_trt.export.recipe_sha256 = fake.recipe_sha256
    jobs = plan_static(folder, [Resolution(64, 96)], ["decoder"], ".onnx")
    return build(
        jobs,
        BuildSettings(model="small", backend="onnxruntime", force=moment is not None),
        on_event=step,
    )


def in_child(folder: Path, moment: int | None) -> int:
    """The child's exit status, as `os.waitstatus_to_exitcode` gives it; 10 is kept, 11 built."""
    child = os.fork()
    if child == 0:
        (result,) = build_once(folder, moment)
        os._exit({"kept": 10, "built": 11}.get(result.status, 12))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def left_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def main() -> None:
    folder = Path(sys.argv[1])
    engine = folder / "static" / "96x64" / "vae_decoder.onnx"
    found = []
    for moment in map(int, sys.argv[2:]):
        status = in_child(folder, moment)
        try:
            usable = bool(store.check_engine(engine))
        except QvaeError:
            usable = False
        found.append(
            {
                "moment": moment,
                "killed": status == -signal.SIGKILL,
                "usable": usable,
                "next": in_child(folder, None),
                "left": left_in(folder),
            }
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
