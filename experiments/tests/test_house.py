"""What the house is counted by."""

from __future__ import annotations

from experiments.house import code_lines, function_imports

SOURCE = '''"""Said."""

# Why.
import os


def f(
    x,
):
    """Returns."""
    from pangu_sigma import api

    return api, os
'''


def test_docstrings_comments_blank_lines_and_imports_are_no_code():
    assert code_lines(SOURCE) == 4
    assert function_imports(SOURCE) == 1
