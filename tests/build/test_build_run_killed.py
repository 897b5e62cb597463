"""SIGKILL at every step of a build: nothing is lost, and the next build cleans up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILT, KEPT = 11, 10
PAIR = ["vae_decoder.onnx", "vae_decoder.onnx.json"]


def kill_at(folder: Path, *moments: int) -> list[dict[str, object]]:
    path = os.pathsep.join([str(HERE), str(HERE.parent), *(p for p in sys.path if p)])
    done = subprocess.run(
        [sys.executable, str(HERE / "killed_builds.py"), str(folder), *map(str, moments)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


def test_killed_before_there_is_an_engine(tmp_path: Path) -> None:
    for case in kill_at(tmp_path, 2):
        assert case == {"moment": 2, "killed": True, "usable": False, "next": BUILT, "left": PAIR}


def test_killed_while_replacing_one(tmp_path: Path, own_temporary_folder: Path) -> None:
    """Events (start, trace, optimize twice) and then the syncs of the writing, to the end."""
    cases = kill_at(tmp_path, 999, *range(1, 13))
    first, rest = cases[0], cases[1:]
    assert (first["killed"], first["usable"]) == (False, True)  # no such step: it ran to its end
    killed = [case for case in rest if case["killed"]]
    assert len(killed) >= 10, rest
    for case in rest:
        assert case["usable"] is True, case  # the old engine or the new one, whole
        assert case["next"] == KEPT, case
        assert case["left"] == PAIR, "the next build cleans up, although it builds nothing"
    assert list(own_temporary_folder.iterdir()) == []
