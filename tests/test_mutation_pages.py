"""The pages about the mutation run speak of code that is there: every explained change is one that the run still makes."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from mutation_run import CHECKER, EXPLANATIONS, ROOT, TESTS, _Mutator, explained, row
from mutation_run import Mutant as Change

PAGES = sorted(ROOT.glob(EXPLANATIONS))


class _Recorder(_Mutator):
    """Applies nothing and notes the key of every change."""

    def __init__(self, file: str) -> None:
        super().__init__(-1)
        self.file, self.keys = file, set[tuple[str, str, str, str]]()
        self.source = (ROOT / CHECKER / file).read_text()
        self.lines = self.source.splitlines()
        self.visit(ast.parse(self.source))

    def _hit(self, node: ast.AST, change: str) -> bool:
        code = self.lines[getattr(node, "lineno", 1) - 1].strip()
        self.keys.add((self.file, ".".join(self.scope), code, change))
        return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_rows_refer_to_changes_that_are_still_made(page: Path) -> None:
    keys = explained(page)
    assert keys
    for file in {key[0] for key in keys}:
        made = _Recorder(file).keys
        gone = {key for key in keys if key[0] == file} - made
        assert not gone, f"{page.name} explains changes of lines that are no longer in {file}: {sorted(gone)}"


def test_rows_that_are_printed_are_understood(tmp_path: Path) -> None:
    changes = [
        Change("a/b.py", 0, "f.g", 1, "x = a | b  # ``x``", "BitOr -> BitAnd in a | b"),
        Change("a/b.py", 1, "", 2, "N = 1", "1 -> 2"),
    ]
    page = tmp_path / "page.md"
    page.write_text("\n".join(["## `a/b.py`", "", *(row(change, "Why.") for change in changes), row(changes[0]).replace("f.g", "h")]))
    assert explained(page) == {change.key for change in changes}  # a row without a reason explains nothing


def test_files_and_their_tests_exist() -> None:
    for file, tests in TESTS.items():
        assert (ROOT / CHECKER / file).is_file()
        assert all((ROOT / "tests" / f"test_{name}.py").is_file() for name in tests), tests
