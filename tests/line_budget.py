"""Whether the package keeps its budget of lines of code, without comments, docstrings, blank lines.

python tests/line_budget.py [--by-file]
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import tokenize
from pathlib import Path

#: What `make lint` holds the package to.
MOST_LINES = 13_000
PACKAGE = Path(__file__).resolve().parent.parent / "qvae_trt"
_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def count(source: str) -> int:
    """Lines of Python source that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, _WITH_DOCSTRING) and ast.get_docstring(node) is not None:
            first = node.body[0]
            lines.difference_update(range(first.lineno, (first.end_lineno or 0) + 1))
    return len(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--by-file", action="store_true", help="the lines of each file")
    by_file = parser.parse_args().by_file
    counts = {path: count(path.read_text("utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
    for path, lines in counts.items() if by_file else ():
        print(f"{lines:6} {path.relative_to(PACKAGE.parent)}")
    total = sum(counts.values())
    print(f"{total} lines of code in {PACKAGE.name}, at most {MOST_LINES} are allowed")
    return int(total > MOST_LINES)


if __name__ == "__main__":
    sys.exit(main())
