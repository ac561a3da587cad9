"""Mutation run over the checker: change one operator, constant, condition or call at a time and see which tests notice.

    python tests/mutation_run.py                                        # every file of the checker: hours
    python tests/mutation_run.py certificates/checker/cells.py          # one file
    python tests/mutation_run.py --only docs/mutation-run.md            # the survivors of the page again: minutes

Each mutant runs in a fresh process in which only the mutated module differs. A survivor that docs/mutation-run*.md do not
explain is printed as NEW and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CHECKER = Path("certificates/checker")
EXPLANATIONS = "docs/mutation-run*.md"

TESTS = {  # tests made for the file, which take seconds
    "balls.py": ["checker_algebras", "checker_arithmetic", "checker_implicit"],
    "bundle.py": ["checker_files", "checker_bundle", "checker_implicit"],
    "cells.py": ["checker_cells", "checker_attacks"],
    "chain.py": ["checker_network"],
    "closed_loop.py": ["checker_counterexample"],
    "command.py": ["checker_output"],
    "curved.py": ["first_order_exact", "first_order_thirds", "first_order_slopes"],
    "definite.py": ["definite"],
    "derivatives.py": ["first_order_slopes"],
    "domain.py": ["checker_domain", "local_units"],
    "enclosure.py": ["checker_slopes", "checker_enclosure", "checker_implicit"],
    "exact.py": ["checker_algebras", "checker_arithmetic", "checker_implicit"],
    "expansion.py": ["first_order_expansions", "first_order_thirds"],
    "graph.py": ["checker_graph", "checker_bundle"],
    "implicit.py": ["checker_implicit"],
    "increments.py": ["checker_network", "checker_implicit_network"],
    "intervals.py": ["checker_outward", "checker_intervals"],
    "jacobian.py": ["checker_gains", "first_order_gains"],
    "kinds.py": ["checker_kinds"],
    "local_slopes.py": ["checker_local_slopes", "first_order_slopes", "checker_implicit"],
    "network.py": ["checker_network", "checker_implicit_network"],
    "products.py": ["checker_network", "checker_implicit_network"],
    "rounding.py": ["checker_rounding", "checker_cells"],
    "signs.py": ["checker_signs"],
    "slopes.py": ["checker_network"],
    "sorts.py": ["checker_sorts"],
    "symbols.py": ["checker_symbols", "local_units"],
    "unit_splits.py": ["local_units"],
    "verdict.py": ["checker_verdict"],
    "vertices.py": ["checker_vertices"],
    "windows.py": ["checker_network", "checker_implicit_network"],
    "work.py": ["checker_work", "checker_attacks", "checker_implicit"],
    "writing.py": ["checker_kinds"],
    "verifiers/action_deviation.py": ["checker_deviation"],
    "verifiers/closed_loop_lyapunov_bab.py": ["checker_lyapunov", "checker_attacks"],
    "verifiers/counterexample.py": ["checker_witness", "checker_counterexample", "checker_monotonicity"],
    "verifiers/lipschitz_bound.py": ["checker_lipschitz", "lipschitz_bound"],
    "verifiers/local_lipschitz.py": ["checker_local", "local_units", "first_order_expansions"],
    "verifiers/monotonicity.py": ["checker_monotonicity"],
}

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


@dataclass(frozen=True)
class Mutant:
    """One change: where it is, the line it changes, what it does."""

    file: str
    number: int
    function: str
    line: int
    code: str
    change: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What an explanation refers to; line numbers move, so they are not part of it."""
        return self.file, self.function, self.code, self.change


class _Mutator(ast.NodeTransformer):
    """Applies mutation number ``target`` and counts how many there are."""

    def __init__(self, target: int) -> None:
        self.target, self.count, self.change, self.line = target, -1, "", 0
        self.scope: list[str] = []
        self.function = ""

    def _hit(self, node: ast.AST, change: str) -> bool:
        self.count += 1
        if self.count != self.target:
            return False
        self.change, self.line, self.function = change, getattr(node, "lineno", 0), ".".join(self.scope)
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

    def visit_If(self, node: ast.If) -> ast.AST:
        self.generic_visit(node)
        return self._negated(node)

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self.generic_visit(node)
        return self._negated(node)

    def _negated(self, node: Any) -> ast.AST:
        plain = isinstance(node.test, ast.Name | ast.Attribute | ast.Call | ast.Subscript)  # the others are mutated within
        if plain and self._hit(node, f"negate condition {ast.unparse(node.test)[:80]}"):
            node.test = ast.UnaryOp(ast.Not(), node.test)
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.value, ast.Call) and self._hit(node, f"drop call {ast.unparse(node)[:80]}"):
            return ast.copy_location(ast.Pass(), node)
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, bool):
            if self._hit(node, f"{node.value} -> {not node.value}"):
                return ast.copy_location(ast.Constant(not node.value), node)
        elif isinstance(node.value, int | float) and self._hit(node, f"{node.value} -> {node.value + 1}"):
            return ast.copy_location(ast.Constant(node.value + 1), node)
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        if not self.scope and isinstance(node.targets[0], ast.Name) and node.targets[0].id.startswith("MAX_"):
            return node  # a limit of work: one more or less proves nothing else
        self.generic_visit(node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id == "len" and isinstance(node.args[0], ast.Attribute):
            node.args[0].value = self.visit(node.args[0].value)  # both ends of an interval have the same length
            return node
        self.generic_visit(node)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if node.attr in ("shape", "ndim", "dtype", "size") and isinstance(node.value, ast.Attribute):
            node.value.value = self.visit(node.value.value)  # and the same shape
            return node
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

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.scope.append(node.name)
        node.body = [self.visit(statement) for statement in node.body]
        self.scope.pop()
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.scope.append(node.name)
        node.body = [self.visit(statement) for statement in node.body]  # annotations, defaults and decorators stay
        self.scope.pop()
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is not None:
            node.value = self.visit(node.value)
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        return node


def mutate(file: str, source: str, number: int) -> tuple[Mutant, ast.Module] | None:
    """Mutation ``number`` of a module and its tree, ``None`` past the last."""
    mutator = _Mutator(number)
    tree = mutator.visit(ast.parse(source))
    if not mutator.change:
        return None
    code = source.splitlines()[mutator.line - 1].strip()
    return Mutant(file, number, mutator.function, mutator.line, code, mutator.change), ast.fix_missing_locations(tree)


def mutants_of(file: str) -> Iterator[Mutant]:
    """All mutants of a file of the checker, in order."""
    source, number = (ROOT / CHECKER / file).read_text(), 0
    while (made := mutate(file, source, number)) is not None:
        yield made[0]
        number += 1


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


def _start(mutant: Mutant, tests: Sequence[str], timeout: int) -> int:
    """Fork a process that imports the mutant and runs the tests until one fails; its exit status is 0 if none did."""
    child = os.fork()
    if child:
        return child
    try:
        import pytest

        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CPU, (timeout, timeout))
        os.environ["HYPOTHESIS_PROFILE"] = "mutation"
        made = mutate(mutant.file, (ROOT / CHECKER / mutant.file).read_text(), mutant.number)
        tree = made[1] if made is not None else ast.Module([], [])
        module = "lipctrl." + ".".join((CHECKER / mutant.file).with_suffix("").parts)
        sys.meta_path.insert(0, _MutantFinder(module, ROOT / CHECKER / mutant.file, tree))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        for test in tests:  # one after the other: what the first notices need not collect the rest
            if pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=no", test]) != 0:
                os._exit(1)
        os._exit(0)
    finally:
        os._exit(1)


def survivors_of(work: Sequence[Mutant], jobs: int, timeout: int) -> Iterator[Mutant]:
    """The mutants on which every test passes, ``jobs`` processes at a time; a hang (seconds of processor time) counts as noticed."""
    waiting, running = list(reversed(work)), dict[int, tuple[Mutant, float]]()
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            tests = [f"tests/test_{name}.py" for name in TESTS[mutant.file]]
            running[_start(mutant, tests, timeout)] = (mutant, time.monotonic() + 20 * timeout)
        for child, (mutant, deadline) in list(running.items()):
            done, status = os.waitpid(child, os.WNOHANG)
            if not done and time.monotonic() < deadline:
                continue
            del running[child]
            if not done:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
            elif os.waitstatus_to_exitcode(status) == 0:
                yield mutant
        time.sleep(0.02)


def explained(page: Path) -> set[tuple[str, str, str, str]]:
    """The keys of the survivors that a page explains: table rows of four cells below a heading that names the file."""
    keys, file = set(), ""
    for line in page.read_text().splitlines() if page.exists() else []:
        if line.startswith("## `"):
            file = line[4:].split("`")[0]
        cells = [cell.strip().replace("\\|", "|") for cell in line.replace("\\|", "\0").split("|")[1:-1]]
        cells = [cell.replace("\0", "|") for cell in cells]
        if len(cells) == 4 and cells[3] and all(cell.startswith("`") for cell in cells[:3]):
            keys.add((file, *(cell.strip("`").strip() for cell in cells[:3])))
    return keys


def row(mutant: Mutant, why: str = "") -> str:
    """The table row for the page."""
    cells = [f"`` {cell} ``" if "`" in cell else f"`{cell}`" for cell in (mutant.function, mutant.code, mutant.change)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in [*cells, why]) + " |"


def main() -> int:
    """Run the mutants of some files of the checker."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", help="default: every file of the checker")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=int, default=0, help="run this many mutants of each file, evenly spread; 0: all")
    parser.add_argument("--timeout", type=int, default=120, help="seconds of processor time for one mutant")
    parser.add_argument("--only", type=Path, help="run only the survivors that this page explains")
    parser.add_argument("--out", type=Path, help="folder for one JSON file of survivors per file")
    options = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    for heavy in ("numpy", "flint", "scipy.optimize", "scipy.stats", "safetensors.numpy", "hypothesis", "pytest", "torch", "casadi"):
        importlib.import_module(heavy)  # shared by all children; nothing of lipctrl is imported here
    gc.collect()
    gc.freeze()  # so that the children share these pages
    known, unexplained = {key for page in sorted(ROOT.glob(EXPLANATIONS)) for key in explained(page)}, 0
    wanted = explained(options.only) if options.only else None
    files = [str(path.resolve().relative_to(ROOT / CHECKER)) for path in options.files] or list(TESTS)
    for file in files:
        started, work = time.monotonic(), list(mutants_of(file))
        if wanted is not None:
            work = [mutant for mutant in work if mutant.key in wanted]
        if options.limit:
            work = work[:: max(1, len(work) // options.limit)]
        survivors = []
        for mutant in survivors_of(work, options.jobs, options.timeout):
            survivors.append(mutant)
            if mutant.key not in known:
                unexplained += 1
                print(f"NEW {file}:{mutant.line} {row(mutant)}", flush=True)
        print(f"{file}: {len(work)} mutants, {len(survivors)} survived, {time.monotonic() - started:.0f} s", flush=True)
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            result = {"mutants": len(work), "survivors": [asdict(mutant) for mutant in survivors]}
            (options.out / (file.replace("/", "-") + ".json")).write_text(json.dumps(result, indent=1))
    print(f"survivors that {EXPLANATIONS} do not explain: {unexplained}")
    return int(unexplained > 0)


if __name__ == "__main__":
    sys.exit(main())
