"""Whether the tests notice: each mutation breaks one promise, and the test of it must fail.

A list (`*.toml` beside this file) has entries such as

    [[mutation]]
    name = "strikes are never cleared"              # what is broken, in words
    file = "qvae_trt/runtime/cache.py"
    find = "self._strikes.clear()"                  # stands there exactly once
    replace = "pass"
    test = "tests/runtime/test_runtime_failures.py::test_x"   # or a list of them
    gpu = true                                      # only where no CPU can show it; else left out

They are applied one after the other to a copy of the repository, and the tests named are run there.
All of them must pass in the copy as it is. Exit code 1: a mutation survived that needs no GPU, or
could not be judged.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
#: A mutation may make a test wait for ever: then it is not judged, for the machine may be slow.
LIMIT_S = 1200
#: Of the repository's own folder, which has hidden ones as well; `qvae_trt/build` is code.
_LEFT_OUT = ("out", "dist", "build", "site")

Verdict = Literal["noticed", "survived", "needs a GPU", "not judged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """One change of one file, and the tests that must notice it."""

    name: str
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]
    gpu: bool = False

    def apply(self, source: str) -> str:
        """The source with the change. ValueError unless the text stands there exactly once."""
        count = source.count(self.find)
        if count != 1:
            raise ValueError(f"{self.name}: {self.file} has the text {count} times, expected once")
        return source.replace(self.find, self.replace)


def read(path: Path) -> list[Mutation]:
    """The mutations of a list."""
    mutations = []
    for entry in tomllib.loads(path.read_text("utf-8"))["mutation"]:
        test = entry.pop("test")
        mutations.append(Mutation(tests=tuple([test] if isinstance(test, str) else test), **entry))
    return mutations


def run(mutations: list[Mutation]) -> list[tuple[Mutation, Verdict]]:
    """Apply them one by one, and say what became of each."""
    with tempfile.TemporaryDirectory(prefix="qvae-mutations-") as folder:
        copy = Path(folder) / "repository"
        shutil.copytree(ROOT, copy, ignore=_left_out, symlinks=True)
        named = sorted({test for mutation in mutations for test in mutation.tests})
        if _pytest(copy, named, show=True) != 0:
            raise SystemExit("the tests fail without any mutation")
        judged = []
        for mutation in mutations:
            verdict = _judge(copy, mutation)
            print(f"{verdict:12} {mutation.name}", flush=True)
            judged.append((mutation, verdict))
        return judged


def _left_out(folder: str, names: list[str]) -> set[str]:
    there = _LEFT_OUT if Path(folder) == ROOT else ()
    return {name for name in names if name[0] == "." or name in there or name == "__pycache__"}


def _judge(copy: Path, mutation: Mutation) -> Verdict:
    path = copy / mutation.file
    source = path.read_text("utf-8")
    path.write_text(mutation.apply(source), encoding="utf-8")
    try:
        code = _pytest(copy, mutation.tests)
    finally:
        path.write_text(source, encoding="utf-8")
    if code == 0:
        return "needs a GPU" if mutation.gpu else "survived"
    return "noticed" if code == 1 else "not judged"


def _pytest(copy: Path, tests: list[str] | tuple[str, ...], *, show: bool = False) -> int:
    """0: they passed; 1: one failed; else pytest did not get so far."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(copy),
        "PYTHONDONTWRITEBYTECODE": "1",  # a source of the same size and second would not be read
        "QVAE_TEST_ENGINES": str(copy.parent / "engines"),
    }
    command = [sys.executable, "-m", "pytest", "-qq", "-x", "-p", "no:cacheprovider", *tests]
    try:
        ran = subprocess.run(
            command,
            cwd=copy,
            env=environment,
            timeout=LIMIT_S,
            capture_output=True,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        print(f"longer than {LIMIT_S} s: {' '.join(tests)}")
        return 124
    if ran.returncode not in ((0,) if show else (0, 1)):
        print(f"exit code {ran.returncode}: {ran.stdout[-4000:]}{ran.stderr[-4000:]}")
    return ran.returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lists", nargs="*", type=Path, help="without any: all beside this file")
    parser.add_argument("--only", metavar="WORD", default="", help="those with this in their name")
    parser.add_argument("--out", type=Path, help="write the counts to this file, as JSON")
    given = parser.parse_args()
    lists = given.lists or sorted(HERE.glob("*.toml"))
    mutations = [m for path in lists for m in read(path) if given.only in m.name]
    counts = Counter(verdict for _, verdict in run(mutations))
    found = {
        "mutations": len(mutations),
        "noticed": counts["noticed"],
        "survived": counts["survived"],
        "needs_gpu": counts["needs a GPU"],
        "not_judged": counts["not judged"],
    }
    print(json.dumps(found))
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 1 if found["survived"] or found["not_judged"] or not mutations else 0


if __name__ == "__main__":
    sys.exit(main())
