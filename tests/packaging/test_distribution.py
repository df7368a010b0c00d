"""The wheel and the sdist hold the tree, all of it and nothing else, and the package list knows every folder."""

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("node", "p2p", "protocol", "trainer")


def modules() -> set[str]:
    """Every Python file of the four packages, as a path from the root."""
    return {str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """(wheel, sdist), built from a copy of the tree; the wheel is made from the sdist, as `build` does it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source / file)
    done = subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def test_the_wheel_holds_exactly_the_tree_under_the_namespace(distributions):
    names = set(zipfile.ZipFile(distributions[0]).namelist())
    assert {name for name in names if ".dist-info/" not in name} == {f"atoll/{path}" for path in modules()}
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_the_sdist_holds_every_module(distributions):
    with tarfile.open(distributions[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert modules() | {"pyproject.toml", "README.md", "LICENSE"} <= names


def test_every_folder_with_modules_is_listed_as_a_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {Path(path).parent for path in modules()}
    assert sorted(settings["packages"]) == sorted("atoll." + ".".join(folder.parts) for folder in folders)
    assert settings["package-dir"] == {f"atoll.{folder}": folder for folder in FOLDERS}


def test_the_names_that_type_checkers_see_lead_to_the_same_folders():
    for folder in FOLDERS:
        assert (ROOT / ".typing" / "atoll" / folder).resolve() == ROOT / folder


def test_constraints_pin_every_dependency_and_leave_the_build_of_torch_open():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    assert {name.partition(">")[0].partition("=")[0] for name in wanted} <= pinned
    assert not [line for line in lines if "+" in line or "==" not in line]
