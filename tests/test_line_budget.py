"""The lines that count."""

from __future__ import annotations

import line_budget

SOURCE = '''"""A docstring
of two lines."""

# A comment.
TEXT = """kept
as code"""


def one(
    value: int,  # with a comment
) -> int:
    """Gone."""
    return value
'''


def test_code_counts_and_comments_docstrings_and_blank_lines_do_not():
    assert line_budget.count(SOURCE) == 6


def test_a_package_over_its_budget_fails(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["line_budget"])
    monkeypatch.setattr(line_budget, "MOST_LINES", 10)
    assert line_budget.main() == 1
    assert "at most 10 are allowed" in capsys.readouterr().out
    monkeypatch.setattr(line_budget, "MOST_LINES", 10**6)
    assert line_budget.main() == 0
