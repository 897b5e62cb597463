"""The small engines of the GPU tests: two static pairs and a pair with two profiles.

To have them built beforehand, one command after the other (at once they are slower on one GPU):

    python tests/gpu/gpu_engines.py DIR      prints the commands, one a mode
    QVAE_GPU_ENGINES=DIR pytest -m gpu tests/gpu
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from qvae_trt import backends, store
from qvae_trt.build import Job, plan_profiles, plan_static
from qvae_trt.commands import build_command
from qvae_trt.errors import QvaeError
from qvae_trt.model import Model
from qvae_trt.profiles import Resolution, load_profiles

MODEL, LEVEL = "bundled:tiny", 1
STATIC = (Resolution(256, 256), Resolution(384, 512))
PROFILES_FILE = Path(__file__).with_name("profiles.toml")


def jobs(folder: Path) -> list[Job]:
    return plan_static(folder, STATIC) + plan_profiles(folder, load_profiles(PROFILES_FILE))


def commands(folder: Path) -> str:
    """What builds them."""
    static = build_command("static", *STATIC, model=MODEL, backend="tensorrt", engine_dir=folder)
    profiles = build_command("profiles", model=MODEL, backend="tensorrt", engine_dir=folder)
    file = quote(str(PROFILES_FILE))
    return f"{static} --level {LEVEL}\n{profiles} --profiles {file} --level {LEVEL}"


def refusals(planned: Sequence[Job], model: Model) -> list[str]:
    """Why an engine would not be taken by the run-time, for each that would not."""
    identity = backends.get("tensorrt").identity()
    found = []
    for job in planned:
        expected = {
            **identity,
            "part": job.part,
            "mode": job.mode,
            "precision": "fp16",
            "profiles": job.profiles,
            "weights_sha256": model.weights_sha256,
        }
        try:
            store.check_engine(job.path, expected=expected)
        except QvaeError as error:
            found.append(error.what)
    return found


if __name__ == "__main__":
    print(commands(Path(sys.argv[1])))
