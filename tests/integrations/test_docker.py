"""`integrations/docker/Dockerfile`: what it says, as far as that can be tried without a container.

`make lint` runs hadolint on it.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, str]]:
    """Each instruction with its arguments."""
    text = (ROOT / "integrations" / "docker" / "Dockerfile").read_text("utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(name, arguments) for name, arguments in lines]


def test_what_it_copies_makes_the_package(steps, tmp_path):
    for name, arguments in steps:
        if name == "COPY":
            *sources, target = [word for word in shlex.split(arguments) if word[:2] != "--"]
            for source in map(Path, sources):
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copyfile
                copy(ROOT / source, tmp_path / target / ("" if target != "./" else source))
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", str(tmp_path)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as made:
        assert {"qvae_trt/cli/app.py", "qvae_trt/data/profiles/nine.toml"} <= set(made.namelist())


def test_it_runs_the_command_line_as_an_ordinary_user(steps):
    last = dict(steps)
    assert int(last["USER"]) >= 10000
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert last["ENTRYPOINT"] == '["qvae"]' and "qvae" in project["scripts"]
    installs = [arguments for name, arguments in steps if "pip install" in arguments]
    assert (
        any(".[gpu]" in arguments for arguments in installs)
        and "gpu" in project["optional-dependencies"]
    )


def test_engines_are_on_a_volume(steps):
    last = dict(steps)
    assert last["VOLUME"] == f"{last['WORKDIR']}/engines"
    assert f"QVAE_ENGINE_DIR={last['VOLUME']}" in last["ENV"]
