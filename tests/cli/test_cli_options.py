"""Words that a shell is offered."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("qvae prof", ["profiles"]),
        ("qvae build --mo", ["--mode", "--model"]),
        ("qvae build --mode ", ["static", "profiles"]),
        ("qvae build --aspect 4", ["4:3"]),
        ("qvae bench --baseline f", ["folded", "fused"]),
    ],
)
def test_shell_completion(words: str, offered: list[str]) -> None:
    asked = {"_QVAE_COMPLETE": "complete_bash", "COMP_WORDS": words}
    asked["COMP_CWORD"] = str(len(words.split(" ")) - 1)
    code = "from qvae_trt.cli.app import main; raise SystemExit(main([]))"
    ran = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True
    )
    assert ran.stdout.split() == offered, ran.stderr
