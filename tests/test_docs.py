"""The documentation says what is there: links lead somewhere, code compiles and names what exists, commands parse."""

import ast
import builtins
import dataclasses
import importlib
import importlib.util
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from hf_reprot import OTTransferConfig
from hf_reprot.cli import app
from hf_reprot.settings.cache import CacheOptions
from hf_reprot.settings.recipe import Recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = [
    *sorted((ROOT / "docs" / "experimental").glob("*.md")),
    *(ROOT / "docs/how-to" / n for n in ("own-loop.md", "compare.md")),
]
OTHER_COMMANDS = {"pip", "git", "cd", "make", "pytest", "hf", "ruff", "mypy", "mkdocs", "pre-commit"}


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _blocks(page: Path, language: str) -> list[str]:
    blocks = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", page.read_text("utf-8"), flags=re.S | re.M)
    return [inspect.cleandoc("\n" + text) for _, text in blocks]


def _prose(page: Path) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text("utf-8"), flags=re.S | re.M)


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", _prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


# ---- links ----


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{_name(page)}: {target}"
        if anchor and found.suffix == ".md":
            assert anchor in _anchors(found), f"{_name(page)}: {target}"


def test_readme_and_site_say_alike_when_to_use_it():
    def advice(page: Path) -> list[str]:
        pattern = r"^- \*\*(?:Use|Do not use).*?(?=^- |^#|\Z|\n\n)"
        found = re.findall(pattern, page.read_text("utf-8"), flags=re.M | re.S)
        return [" ".join(line.split()) for line in found]

    assert len(advice(ROOT / "README.md")) == 3
    assert advice(ROOT / "README.md") == advice(ROOT / "docs" / "index.md")


def test_every_picture_of_the_docs_is_shown():
    shown = "".join(page.read_text("utf-8") for page in PAGES)
    assert [p.name for p in (ROOT / "docs" / "pictures").iterdir() if p.name not in shown] == []


# ---- Python ----


@pytest.mark.parametrize("page", [p for p in PAGES if _blocks(p, "python")], ids=_name)
def test_python_compiles_and_names_what_exists(page):
    known: dict[str, object] = {}  # a page's blocks follow on one another
    for block in _blocks(page, "python"):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{_name(page)}: {node.module} has no {alias.name}"
                    if node.module.split(".")[0] == "hf_reprot":
                        known[alias.asname or alias.name] = getattr(module, alias.name)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                _check_keywords(node, known, page)


def _check_keywords(call: ast.Call, known: dict[str, object], page: Path) -> None:
    function = _resolve(call.func, known)
    if function is None:
        return
    takes = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in takes.values()):
        return
    unknown = [keyword.arg for keyword in call.keywords if keyword.arg is not None and keyword.arg not in takes]
    assert not unknown, f"{_name(page)}: {ast.unparse(call.func)} takes no {', '.join(unknown)}"


def _resolve(node: ast.expr, known: dict[str, object]) -> object:
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in known:
        return getattr(known[node.value.id], node.attr)
    return None


@pytest.mark.parametrize("page", [p for p in RUN if _blocks(p, "python")], ids=_name)
def test_examples_without_files_run(page, monkeypatch, capsys):
    monkeypatch.setenv("HF_REPROT_EXPERIMENTAL_SILENCE", "1")
    for block in _blocks(page, "python"):
        exec(compile(block, _name(page), "exec"), {"__builtins__": builtins, "__name__": "__docs__"})


# ---- the shell ----


def _commands(page: Path) -> list[list[str]]:
    lines = [line for block in _blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", _prose(page))]
    lines += [span for span in spans if re.match(r"(python|torchrun|hf-reprot) ", span) and "..." not in span]
    commands = []
    for line in lines:
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        while "&&" in words:
            commands.append(words[: words.index("&&")])
            words = words[words.index("&&") + 1 :]
        commands.append(words)
    return [command for command in commands if command]


@pytest.mark.parametrize("page", [p for p in PAGES if _commands(p)], ids=_name)
def test_commands_exist_with_their_flags(page):
    for command in _commands(page):
        assert _mistakes(command) == [], f"{_name(page)}: {' '.join(command)}"


def _mistakes(command: list[str]) -> list[str]:
    program, *words = command
    if program == "torchrun" or program.endswith("torchrun"):
        return _mistakes(["python", *words[words.index("-m") :]])
    if program == "hf-reprot":
        return _wrong_flags(words)
    if program != "python":
        return [] if program in OTHER_COMMANDS else [f"what is {program}?"]
    if words[0] != "-m":
        return _wrong_script_flags(ROOT / words[0], words[1:])
    if words[1] == "hf_reprot.cli":
        return _wrong_flags(words[2:])
    spec = importlib.util.find_spec(words[1])
    if spec is None:
        return [f"no module {words[1]}"]
    if not (Path(spec.origin).is_relative_to(ROOT) and words[1].split(".")[0] != "hf_reprot"):
        return []
    script = Path(spec.origin)
    return _wrong_script_flags(script.with_name("__main__.py") if script.name == "__init__.py" else script, words[2:])


def _wrong_script_flags(script: Path, words: list[str]) -> list[str]:
    if not script.is_file():
        return [f"no file {script}"]
    text = script.read_text("utf-8")
    flags = [word.split("=")[0] for word in words if word.startswith("--")]
    wrong = [f for f in flags if f != "--help" and f'"{f}"' not in text and f'"{f[2:]}"' not in text]
    files = [word for word in words if word.endswith(".yaml") and "NAME" not in word]
    return wrong + [file for file in files if not (ROOT / file).is_file()]


def _wrong_flags(words: list[str]) -> list[str]:
    group = typer.main.get_command(app)
    commands = group.commands
    if words and (words[0] == "COMMAND" or words[0] in [name for p in group.params for name in p.opts]):
        return []
    if not words or words[0] not in commands:
        return [f"no command {words[:1]}"]
    legal = {"--help", *(name for p in commands[words[0]].params for name in (*p.opts, *p.secondary_opts))}
    if words[0] in ("train", "cache"):
        legal |= {f"--{f.name}" for f in (*dataclasses.fields(Recipe), *dataclasses.fields(OTTransferConfig))}
        legal |= {"--processes"} if words[0] == "train" else {f"--{f.name}" for f in dataclasses.fields(CacheOptions)}
    return [flag for flag in (w.split("=")[0] for w in words if w.startswith("--")) if flag not in legal]


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("hf-reprot train run.yaml --ot_wieght 2", ["--ot_wieght"]),
        ("hf-reprot trian run.yaml", ["no command ['trian']"]),
        ("python examples/distil_backbone.py --teachers a", ["--teachers"]),
        ("python -m studies studies/distil.yaml", []),
        ("torchrun --nproc_per_node 2 -m hf_reprot.cli train run.yaml --use_cpu true", []),
    ],
)
def test_the_check_of_commands_finds_mistakes(command, wrong):
    assert _mistakes(shlex.split(command)) == wrong


# ---- the site ----


def test_every_object_of_the_reference_exists():
    names = [n for page in PAGES for n in re.findall(r"^::: (\S+)$", page.read_text("utf-8"), flags=re.M)]
    assert len(names) > 50
    for name in names:
        module, _, attribute = name.rpartition(".")
        try:
            owner = importlib.import_module(module)
        except ModuleNotFoundError:  # of a class
            outer, _, inner = module.rpartition(".")
            owner = getattr(importlib.import_module(outer), inner)
        assert getattr(owner, attribute, None) is not None, f"the reference shows {name}, which does not exist"


def _hooks(name: str = "hooks"):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_setting_and_every_command_has_its_row():
    hooks = _hooks()
    grouped = [name for names in hooks.setting_groups().values() for name in names]
    assert sorted(grouped) == sorted(OTTransferConfig.transfer_fields())
    row = next(r for r in hooks.settings_tables().splitlines() if r.startswith("| `ot_tolerance` "))
    assert re.fullmatch(r"\| `ot_tolerance` \| `0.001` \| .*L1.* \|", row)
    page = hooks.on_page_markdown("<!-- commands -->")
    commands = typer.main.get_command(app).commands
    assert re.findall(r"^## hf-reprot (.*)$", page, flags=re.M) == sorted(commands)
    assert re.search(r"^\| `--seeds` \| `2` \| \w.* \|$", page, flags=re.M)


def test_help_with_brackets_is_no_link():
    page = _hooks().on_page_markdown("<!-- commands -->")
    assert "\\[RECIPE.yaml\\] \\[--processes N\\]" in page


def test_examples_of_docstrings_become_code():
    pytest.importorskip("griffe")
    shown = _hooks("griffe_docstrings").with_examples_as_code
    assert shown("Does.\n\nExample:\n    >>> f()[0](1)\n") == "Does.\n\nExamples:\n    >>> f()[0](1)"
    code = shown("Does.\n\nExample (needs the Hub):\n    f(\n        1)\n\nRaises:\n    ValueError: no.")
    assert code == "Does.\n\nExample (needs the Hub):\n\n```python\nf(\n    1)\n```\n\nRaises:\n    ValueError: no."


def test_every_page_asks_for_tables_that_exist():
    asked = {c for page in PAGES for c in re.findall(r"<!-- (?:\w+ settings|settings|commands) -->", page.read_text())}
    assert asked == set(_hooks().TABLES)


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings_handlers.python")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    settings = (tmp_path / "site" / "reference" / "settings" / "index.html").read_text("utf-8")
    assert all(f"<code>{name}</code>" in settings for name in OTTransferConfig.transfer_fields())
    assert not list((tmp_path / "site").rglob("*.py"))
