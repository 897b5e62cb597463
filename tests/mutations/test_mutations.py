"""The lists of mutations fit the code, and the script tells a survivor from one that is noticed."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
import run_mutations
from run_mutations import HERE, ROOT

MUTATIONS = [m for path in sorted(HERE.glob("*.toml")) for m in run_mutations.read(path)]
SCRIPT = HERE / "run_mutations.py"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_each_mutation_changes_code_that_is_there(mutation):
    source = (ROOT / mutation.file).read_text("utf-8")
    changed = ast.dump(ast.parse(mutation.apply(source)))
    assert changed != ast.dump(ast.parse(source))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_each_mutation_names_tests_that_are_there(mutation):
    assert mutation.tests
    for test in mutation.tests:
        path, name = test.split("::")
        functions = ast.walk(ast.parse((ROOT / path).read_text("utf-8")))
        named = {node.name for node in functions if isinstance(node, ast.FunctionDef)}
        assert name.split("[")[0] in named


def test_no_two_have_one_name():
    names = [mutation.name for mutation in MUTATIONS]
    assert len(names) == len(set(names))


ENTRY = """
[[mutation]]
name = "{name}"
file = "qvae_trt/errors.py"
find = "if self.fix is None else"
replace = "{replace}"
test = "tests/test_errors.py::test_text_is_what_then_fix"
"""


def test_a_survivor_fails_the_run(tmp_path):
    """Both in one run: a script that sees only failures, or none, must not pass."""
    entries = [
        ENTRY.format(name="no fix", replace="if True else"),
        ENTRY.format(name="the same", replace="if None is self.fix else"),
    ]
    path = tmp_path / "list.toml"
    path.write_text("".join(entries))
    ran = subprocess.run(
        [sys.executable, SCRIPT, path], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1, ran.stdout + ran.stderr
    said = [line.split(maxsplit=1) for line in ran.stdout.splitlines()[:2]]
    assert said == [["noticed", "no fix"], ["survived", "the same"]]
    (tmp_path / "one.toml").write_text(entries[0])
    ran = subprocess.run([sys.executable, SCRIPT, tmp_path / "one.toml"], check=False)
    assert ran.returncode == 0


@pytest.mark.slow
def test_every_mutation_is_noticed():
    ran = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
