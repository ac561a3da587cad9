"""Every code block of the README and of docs/ runs; every page is reachable; every part is in the reference.

``python`` blocks of one page share a namespace. ``console`` blocks hold commands after ``$``; those of one page run in
the same folder as its Python. ``bash`` blocks hold commands of the checkout, which must be targets of the Makefile.
"""

import os
import pkgutil
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import lipctrl

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = {"python", "console", "bash", "text", "toml", "json", "{toctree}", "{eval-rst}"}
FENCE = re.compile(r"^(?P<fence>```+)(?P<language>[^\n`]*)\n(?P<code>.*?)^(?P=fence)[ ]*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, and the line of the page where the text starts."""

    language: str
    code: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = []
    for match in FENCE.finditer(text):
        language = (match["language"].split() or ["text"])[0]
        found.append(Block(language, match["code"], text.count("\n", 0, match.start("code")) + 1))
    return found


def commands(block: Block) -> list[str]:
    """The commands of a console block, continuation lines joined."""
    joined = block.code.replace("\\\n", " ")
    return [line[2:] for line in joined.splitlines() if line.startswith("$ ")]


@pytest.fixture
def shell(tmp_path):
    """A folder to run in, where ``lipctrl`` and ``lipctrl-check`` are those of this checkout."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    for name, module in (("lipctrl", "lipctrl.cli"), ("lipctrl-check", "lipctrl.certificates.checker")):
        (scripts / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        (scripts / name).chmod(0o755)
    path = f"{scripts}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "COLUMNS": "120"}

    def run(command: str, folder: Path) -> None:
        done = subprocess.run(["sh", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"

    return run


@pytest.mark.filterwarnings("ignore:.*Box:UserWarning:gymnasium")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_blocks_run(page, tmp_path, monkeypatch, shell):
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    namespace: dict = {"__name__": f"docs_{page.stem}"}
    for block in blocks(page):
        if block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), namespace)  # noqa: S102 - the page is ours
        elif block.language == "console":
            assert commands(block), f"{page.name}:{block.line}: a console block holds commands after '$ '"
            for command in commands(block):
                shell(command, folder)
        elif block.language == "bash":
            for command in block.code.splitlines():
                target = re.fullmatch(r"make ([a-z]+)\s*(#.*)?", command)
                assert target, f"{page.name}:{block.line}: bash blocks hold make targets, use console for {command!r}"
                subprocess.run(["make", "--dry-run", target[1]], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_are_in_a_language_that_this_file_knows(page):
    assert {block.language for block in blocks(page)} <= LANGUAGES


def test_every_page_is_in_the_table_of_contents():
    listed = set(re.search(r"```\{toctree\}\n.*?\n\n(.*?)```", (ROOT / "docs/index.md").read_text(), re.DOTALL)[1].split())
    assert listed == {page.stem for page in PAGES if page.parent.name == "docs" and page.stem != "index"}


def test_every_part_is_in_the_reference():
    listed = set(re.findall(r"^ +(lipctrl[\w.]+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE))
    parts = {f"lipctrl.{part.name}" for part in pkgutil.iter_modules(lipctrl.__path__) if not part.name.startswith("_")}
    parts |= {f"lipctrl.certificates.{part.name}" for part in pkgutil.iter_modules(lipctrl.certificates.__path__)}
    assert listed == parts - {"lipctrl.certificates", "lipctrl.cli"}  # the one has parts, the other a page of its own


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
        for target in re.findall(r"\{doc\}`(?:[^`<]*<)?([\w/-]+)>?`", page.read_text()):
            assert (page.parent / f"{target}.md").exists(), f"{page.name} refers to {target}"
