"""Import paths of version 0.1 still work, say where to go, and give the very same objects."""

import importlib
import sys

import pytest

from hf_reprot.utils.moved import MOVED_MODULES, MOVED_NAMES


@pytest.mark.parametrize(("old", "new"), sorted(MOVED_MODULES.items()))
def test_an_old_module_is_the_new_one(old, new, monkeypatch):
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(FutureWarning, match=f"{old} has moved to {new}"):
        module = importlib.import_module(old)
    there = importlib.import_module(new)
    names = [name for name in vars(there) if not name.startswith("_")]
    assert names
    assert all(getattr(module, name) is getattr(there, name) for name in names)


@pytest.mark.parametrize(
    ("package", "name", "home"), [(p, n, h) for p, names in MOVED_NAMES.items() for n, h in names.items()]
)
def test_an_old_name_is_the_new_one(package, name, home, monkeypatch):
    if package in MOVED_MODULES:
        monkeypatch.delitem(sys.modules, package, raising=False)
    with pytest.warns(FutureWarning, match=f"{package}.* has moved"):
        found = getattr(importlib.import_module(package), name)
    assert found is getattr(importlib.import_module(home), name)
