"""The package map, the links and the metadata agree with the tree."""

import os
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAPPED = ("agents", "certificates", "envs")


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def source_folders() -> dict[str, Path]:
    """Every folder of the tree that holds Python or data, by the name it has as a package."""
    folders = {}
    for top in ("lipctrl", *MAPPED):
        for path, names, files in os.walk(ROOT / top):
            names[:] = [name for name in names if name != "__pycache__" and not Path(path, name).is_symlink()]
            if files:
                package = ".".join(Path(path).relative_to(ROOT).parts)
                folders[package if top == "lipctrl" else f"lipctrl.{package}"] = Path(path)
    return folders


def test_every_folder_of_the_tree_is_a_package_of_the_wheel(project):
    assert sorted(project["tool"]["setuptools"]["packages"]) == sorted(source_folders())


def test_every_folder_of_code_has_an_init():
    missing = [name for name, path in source_folders().items() if list(path.glob("*.py")) and not (path / "__init__.py").exists()]
    assert missing == []


def test_data_files_are_in_the_wheel(project):
    declared = project["tool"]["setuptools"]["package-data"]
    left_out = []
    for name, path in source_folders().items():
        carried = {found for pattern in declared.get(name, []) for found in path.glob(pattern)}
        left_out += [file for file in path.iterdir() if file.is_file() and file.suffix not in {".py", ".pyc"} and file not in carried]
    assert left_out == []


@pytest.mark.parametrize("name", MAPPED)
def test_links_lead_to_the_top_level_folders(name):
    link = ROOT / "lipctrl" / name
    if not link.is_symlink():
        pytest.skip("this checkout has no links")
    assert os.readlink(link) == f"../{name}"


def test_dependencies_have_floors_and_no_ceilings(project):
    extras = project["project"]["optional-dependencies"]
    requirements = [*project["project"]["dependencies"], *(one for extra in extras.values() for one in extra)]
    for requirement in requirements:
        if not requirement.startswith("lipctrl["):
            assert re.fullmatch(r"[A-Za-z0-9-]+(\[[a-z,-]+\])?>=[0-9.]+", requirement), requirement


def test_constraints_pin_everything_that_is_asked_for(project):
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().lower().split() if "==" in line)
    extras = project["project"]["optional-dependencies"]
    for requirement in [*project["project"]["dependencies"], *(one for extra in extras.values() for one in extra)]:
        name, floor = re.match(r"([A-Za-z0-9-]+)[^>]*(?:>=(.*))?", requirement).groups()
        if name != "lipctrl":
            assert numbers(pinned[name.lower()]) >= numbers(floor), requirement


def numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def test_readme_has_two_commands():
    quick_start = (ROOT / "README.md").read_text().split("## Quick start")[1].split("\n## ")[0]
    commands = [line for block in re.findall(r"```(?:bash|console)\n(.*?)```", quick_start, re.DOTALL) for line in block.splitlines()]
    assert [line.split("#")[0].strip() for line in commands] == ["make quickstart", "make test"]


def test_no_path_of_one_machine_is_in_the_house_files():
    for name in ("Makefile", "README.md", "pyproject.toml", "constraints.txt", ".ci/run", ".ci/install"):
        assert not re.search(r"/(opt|home|root|Users|work)/", (ROOT / name).read_text()), name
