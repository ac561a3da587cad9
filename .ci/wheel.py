"""Test the built wheel from outside the checkout: python .ci/wheel.py FOLDER_WITH_THE_WHEEL

1. It holds every source file of the tree, and ``lipctrl`` is its only top-level name.
2. With nothing but numpy, python-flint and safetensors beside it, the checker runs and passes its tests.
3. With all dependencies, every module imports and the commands answer.
"""

import ast
import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKER_NEEDS = {"numpy", "flint", "safetensors"}
TESTS_NEED = {"pytest", "hypothesis"}

IMPORT_EVERYTHING = """
import importlib, pathlib, pkgutil, lipctrl
assert "site-packages" in lipctrl.__file__, lipctrl.__file__
names = [module.name for module in pkgutil.walk_packages(lipctrl.__path__, "lipctrl.") if not module.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(len(names), "modules import from the wheel")
"""


def check_contents(wheel: Path) -> None:
    """Raise SystemExit where the wheel and the tree differ."""
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    listed = subprocess.run(
        ["git", "ls-files", "lipctrl", "envs", "agents", "certificates"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    tree = [Path(name) for name in listed.stdout.splitlines() if not (ROOT / name).is_symlink()]
    expected = {str(path if path.parts[0] == "lipctrl" else "lipctrl" / path) for path in tree}
    if held != expected:
        raise SystemExit(f"the wheel lacks {sorted(expected - held)} and has beyond the tree {sorted(held - expected)}")
    print(f"{wheel.name}: {len(held)} files, as in the tree; its only top-level name is lipctrl")


def imports(file: Path) -> set[str]:
    """The modules that a file imports, by dotted name."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def needed_files(test: Path) -> set[Path] | None:
    """A test file of the checker with the helpers beside it that it imports; ``None`` where it imports more than the checker needs."""
    allowed = {*CHECKER_NEEDS, *TESTS_NEED, *sys.stdlib_module_names}
    files, queue = set(), [test]
    while queue:
        file = queue.pop()
        files.add(file)
        for name in imports(file):
            helper = test.parent / f"{name.split('.')[0]}.py"
            if helper.exists():
                queue += [] if helper in files else [helper]
            elif name.split(".")[0] not in allowed and not name.startswith("lipctrl.certificates.checker"):
                return None
    return files if any("lipctrl.certificates.checker" in file.read_text() for file in files) else None


def new_environment(folder: Path, wheel: Path, *requirements: str) -> Path:
    """Make a virtual environment that holds the wheel and ``requirements``; returns its folder of scripts."""
    venv.create(folder, with_pip=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if requirements:
        subprocess.run([*pip, "-c", ROOT / "constraints.txt", *requirements], check=True)
    subprocess.run([*pip, "--no-deps", wheel], check=True)
    return folder / "bin"


def check_the_checker_alone(wheel: Path, work: Path) -> None:
    """Run ``lipctrl-check`` and the checker's tests where nothing but its three dependencies is installed."""
    scripts = new_environment(work / "light", wheel, "numpy", "python-flint", "safetensors")
    subprocess.run([scripts / "lipctrl-check", "--help"], check=True, cwd=work, stdout=subprocess.DEVNULL)
    subprocess.run([scripts / "python", "-m", "pip", "list"], check=True, cwd=work)
    subprocess.run([scripts / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", *sorted(TESTS_NEED)], check=True)
    tests = work / "tests"
    tests.mkdir()
    chosen = [needed_files(test) or set() for test in (ROOT / "tests").glob("test_*.py")]
    for file in {ROOT / "tests" / "conftest.py"}.union(*chosen):
        shutil.copy(file, tests)
    subprocess.run([scripts / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", tests], check=True, cwd=work)


def check_every_module(wheel: Path, work: Path) -> None:
    """Import every module of the wheel, with the dependencies of the environment that runs this script."""
    scripts = new_environment(work / "full", wheel)
    packages = next((work / "full" / "lib").glob("python*/site-packages"))
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "borrowed.pth").write_text("\n".join(borrowed))  # a path in a .pth file does not bring that folder's own .pth files
    subprocess.run([scripts / "python", "-c", IMPORT_EVERYTHING], check=True, cwd=work)
    for command in (["lipctrl", "--help"], ["lipctrl-check", "--help"]):
        subprocess.run([scripts / command[0], *command[1:]], check=True, cwd=work, stdout=subprocess.DEVNULL)
    print("lipctrl and lipctrl-check answer from the wheel")


def main() -> None:
    """Test the one wheel in the folder that the command line names."""
    (wheel,) = Path(sys.argv[1]).resolve().glob("*.whl")
    os.environ.pop("PYTHONPATH", None)
    check_contents(wheel)
    with tempfile.TemporaryDirectory() as work:
        check_the_checker_alone(wheel, Path(work))
        check_every_module(wheel, Path(work))


if __name__ == "__main__":
    main()
