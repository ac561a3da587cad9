"""Sphinx configuration: MyST pages, furo, API pages from the docstrings."""

import re
import sys
from pathlib import Path
from types import BuiltinFunctionType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import lipctrl

project = "lipctrl"
author = "The lipctrl authors"
version = release = lipctrl.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "templates"]
templates_path = ["templates"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autosummary_generate_overwrite = True

html_theme = "furo"
html_title = "lipctrl"

_LITERAL = re.compile(r"(``.*?``|`.*?`)")
_MATHEMATICS = re.compile(r"\||(?<!\*)\*(?!\*)")


def escape_mathematics(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """In docstrings ``|x|`` is a norm and ``x*`` an equilibrium, neither is markup."""
    for index, line in enumerate(lines):
        parts = _LITERAL.split(line)
        lines[index] = "".join(part if part.startswith("`") else _MATHEMATICS.sub(r"\\\g<0>", part) for part in parts)


def skip_borrowed(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Functions of NumPy and torch that a class only names are documented elsewhere."""
    return True if isinstance(obj, BuiltinFunctionType) else None


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", escape_mathematics)
    app.connect("autodoc-skip-member", skip_borrowed)
