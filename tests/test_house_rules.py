"""Sizes that keep the code readable, and the trusted part small: lines of code are those that hold a token of code."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(file for top in ("lipctrl", "envs", "agents", "certificates") for file in (ROOT / top).rglob("*.py"))
CHECKER = ROOT / "certificates" / "checker"
FRONT = {"command.py", "__main__.py", "__init__.py", "writing.py"}  # around the kernel: the command line, and writing for the search side

MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 70
MAX_KERNEL_LINES = 4438  # ceilings on what has to be believed: raised for a new kind of proof only, and then in the open
MAX_VERIFIER_LINES = 350
NOT_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER}


def docstring(node: ast.AST) -> ast.expr | None:
    body = getattr(node, "body", None)
    first = body[0] if isinstance(body, list) and body else None
    is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    return first.value if is_text else None


def lines_of_code(text: str) -> int:
    """Lines with code on them: neither blank, nor only a comment, nor part of a docstring."""
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NOT_CODE:
            code.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        found = docstring(node) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) else None
        if found is not None:
            code -= set(range(found.lineno, found.end_lineno + 1))
    return len(code)


def test_lines_of_code_leaves_out_what_is_not_code():
    assert lines_of_code('"""Doc\n\nstring."""\n\n# comment\nx = (\n    1,\n)\n\n\ndef f():\n    """Doc."""\n    return x  # why\n') == 5


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_functions_are_short(file):
    text = file.read_text()
    assert text.count("\n") <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found = docstring(node)
            documented = 0 if found is None else found.end_lineno - found.lineno + 1
            assert node.end_lineno - node.lineno + 1 - documented < MAX_FUNCTION_LINES, f"{node.name} at line {node.lineno}"


def test_the_checker_is_small():
    kernel = {file.name: lines_of_code(file.read_text()) for file in CHECKER.glob("*.py") if file.name not in FRONT}
    assert sum(kernel.values()) < MAX_KERNEL_LINES, kernel


@pytest.mark.parametrize("file", sorted((CHECKER / "verifiers").glob("*.py")), ids=lambda file: file.name)
def test_verifiers_are_small(file):
    assert lines_of_code(file.read_text()) < MAX_VERIFIER_LINES
