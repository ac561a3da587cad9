"""Mutation run over the checker: change one operator, constant or statement at a time and see which tests notice.

    python tests/mutation_run.py certificates/checker/cells.py --tests tests/test_stability.py [--limit 200] [--seed 0]

Each mutant runs in a fresh process in which only the mutated module differs. Survivors are printed with file, line and change
and written as JSON; docs/mutation-run.md explains those of the last full run.
"""

from __future__ import annotations

import argparse
import ast
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.Pow: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
NAMES = {
    "maximum": "minimum", "minimum": "maximum", "max": "min", "min": "max", "down": "up", "up": "down", "any": "all", "all": "any",
    "low": "high", "high": "low", "floor": "ceil", "ceil": "floor", "lower": "upper", "upper": "lower",
}  # fmt: skip


class _Mutator(ast.NodeTransformer):
    """Applies mutation number ``target`` and counts how many there are."""

    def __init__(self, target: int) -> None:
        self.target, self.count, self.change, self.line = target, -1, "", 0

    def _hit(self, node: ast.AST, change: str) -> bool:
        self.count += 1
        if self.count != self.target:
            return False
        self.change, self.line = change, getattr(node, "lineno", 0)
        return True

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        for i, op in enumerate(node.ops):
            new = COMPARISONS[type(op)]
            if self._hit(node, f"{type(op).__name__} -> {new.__name__} in {ast.unparse(node)[:80]}"):
                node.ops[i] = new()
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        new = OPERATORS.get(type(node.op))
        if new is not None and self._hit(node, f"{type(node.op).__name__} -> {new.__name__} in {ast.unparse(node)[:80]}"):
            node.op = new()
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        if self._hit(node, f"drop {type(node.op).__name__} in {ast.unparse(node)[:80]}"):
            return node.operand
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        if self._hit(node, f"and <-> or in {ast.unparse(node)[:80]}"):
            node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, bool):
            if self._hit(node, f"{node.value} -> {not node.value}"):
                return ast.copy_location(ast.Constant(not node.value), node)
        elif isinstance(node.value, int | float) and self._hit(node, f"{node.value} -> {node.value + 1}"):
            return ast.copy_location(ast.Constant(node.value + 1), node)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if node.attr in NAMES and self._hit(node, f".{node.attr} -> .{NAMES[node.attr]} in {ast.unparse(node)[:80]}"):
            node.attr = NAMES[node.attr]
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if isinstance(node.ctx, ast.Load) and node.id in NAMES and self._hit(node, f"{node.id} -> {NAMES[node.id]}"):
            node.id = NAMES[node.id]
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if self._hit(node, f"drop: {ast.unparse(node)[:90]}"):
            return ast.copy_location(ast.Pass(), node)
        return node  # the text of a message is not mutated

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.body = [self.visit(statement) for statement in node.body]  # annotations, defaults and decorators stay
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is not None:
            node.value = self.visit(node.value)
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        return node


def mutate(source: str, target: int) -> tuple[ast.Module, str, int] | None:
    """The module with mutation number ``target`` and what it is, ``None`` past the last."""
    mutator = _Mutator(target)
    tree = mutator.visit(ast.parse(source))
    return (ast.fix_missing_locations(tree), mutator.change, mutator.line) if mutator.change else None


class _MutantFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a mutated tree, everything else as usual."""

    def __init__(self, name: str, path: Path, tree: ast.Module) -> None:
        self.name, self.path, self.code = name, path, compile(tree, str(path), "exec")

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        spec = importlib.util.spec_from_loader(fullname, self, origin=str(self.path))
        if spec is not None:
            spec.has_location = True
        return spec

    def exec_module(self, module: Any) -> None:
        module.__file__ = str(self.path)
        exec(self.code, module.__dict__)  # noqa: S102


def run_child(module: str, path: Path, tree: ast.Module, tests: Sequence[str]) -> None:
    """In a forked process: import the mutant, run the tests until one fails, exit with pytest's status."""
    import pytest

    sys.meta_path.insert(0, _MutantFinder(module, path, tree))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=no", *tests])
    os._exit(0 if status == 0 else 1)


def survives(module: str, path: Path, tree: ast.Module, tests: Sequence[str], timeout: float) -> bool:
    """Whether every test passes on the mutant (a hang counts as noticed)."""
    child = os.fork()
    if child == 0:
        os.setsid()
        try:
            run_child(module, path, tree, tests)
        finally:
            os._exit(1)
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def mutants_of(path: Path) -> Iterator[tuple[int, ast.Module, str, int]]:
    """All mutants of a file, in order."""
    source, number = path.read_text(), 0
    while (made := mutate(source, number)) is not None:
        yield number, *made
        number += 1


def main() -> int:
    """Run the mutants of one file against some tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--tests", nargs="+", required=True)
    parser.add_argument("--limit", type=int, default=0, help="run this many mutants, evenly spread; 0: all")
    parser.add_argument("--timeout", type=float, default=120)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    for heavy in ("numpy", "flint", "scipy.optimize", "scipy.stats", "safetensors.numpy", "hypothesis", "pytest", "torch"):
        importlib.import_module(heavy)  # shared by all children; nothing of lipctrl is imported here
    path = options.file.resolve()
    module = "lipctrl." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
    jobs = list(mutants_of(path))
    if options.limit:
        jobs = jobs[:: max(1, len(jobs) // options.limit)]
    survivors = []
    with ThreadPoolExecutor(1) as pool:
        for (number, _, change, line), alive in zip(
            jobs, pool.map(lambda job: survives(module, path, job[1], options.tests, options.timeout), jobs), strict=True
        ):
            if alive:
                survivors.append({"file": str(options.file), "number": number, "line": line, "change": change})
                print(f"SURVIVED {options.file}:{line} {change}", flush=True)
    print(f"{options.file}: {len(jobs)} mutants, {len(jobs) - len(survivors)} noticed, {len(survivors)} survived")
    if options.out:
        options.out.write_text(json.dumps({"mutants": len(jobs), "survivors": survivors}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
