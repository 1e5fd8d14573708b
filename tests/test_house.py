"""The shape of the package: imports point down, its core works alone, lint and types are clean."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import hf_reprot

ROOT = Path(__file__).parents[1] / "hf_reprot"
# From the top. A room may import those below it, and its own modules.
ORDER = [
    *("cli", "commands", "trainer", "experimental", "training", "cache", "hub", "plots", "config"),
    *("models", "data", "features", "losses", "ot", "settings", "utils"),
]


def _imports(path: Path) -> set[str]:
    """Rooms of the package that a module imports, wherever in its text."""
    package = ["hf_reprot", *path.relative_to(ROOT).parts[:-1]]
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            whole = [*base, *(node.module or "").split(".")] if node.module else base
            rooms |= {whole[1]} if len(whole) > 1 else {alias.name for alias in node.names}
    return rooms


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_and_files_are_small(path):
    assert len(path.read_text("utf-8").splitlines()) <= 400
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if room == "__init__":  # the public names
        return
    below = ORDER[ORDER.index(room) :]
    assert _imports(path) <= set(below), sorted(_imports(path) - set(below))


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_lists_only_what_it_defines(path):
    """A name has one import path: only packages gather names, those that a user needs."""
    if path.name == "__init__.py":
        return
    tree = ast.parse(path.read_text("utf-8"))
    imported = {
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    listed = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)
    ]
    assert not imported & {name for names in listed for name in names}


@pytest.mark.parametrize("module", ["hf_reprot", "hf_reprot.ot", "hf_reprot.losses"])
def test_the_core_works_without_the_libraries_around_it(module):
    script = (
        f"import sys, {module}; print([m for m in {['transformers', 'datasets', 'timm', 'ot']} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_trainer_imports_nothing_experimental():
    script = "import sys, hf_reprot.trainer; print([m for m in sys.modules if m.startswith('hf_reprot.experimental')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["ruff check --no-cache", "ruff format --no-cache --check", "mypy"])
def test_lint_format_and_types_are_clean(tool):
    done = subprocess.run([sys.executable, "-m", *tool.split()], cwd=ROOT.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_is_one_version():
    """The package's own; pyproject.toml takes it from there, and the change log names the release that it leads to."""
    root = ROOT.parent
    settings = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))
    assert settings["project"]["dynamic"] == ["version"]
    assert settings["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "hf_reprot.__version__"}
    assert yaml.safe_load((root / "CITATION.cff").read_text("utf-8"))["version"] == hf_reprot.__version__
    newest = re.search(r"^## \[(.+)\]", (root / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert newest is not None
    assert hf_reprot.__version__.split(".dev")[0] == newest[1]
