"""The examples in docstrings run as they stand."""

import doctest
import importlib
import pkgutil

import pytest

import hf_reprot
from hf_reprot.losses import baselines

MODULES = [m.name for m in pkgutil.walk_packages(hf_reprot.__path__, "hf_reprot.") if not m.name.endswith(".cli")]


def _with_examples() -> list[str]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = []
    for name in MODULES:
        if any(test.examples for test in finder.find(importlib.import_module(name))):
            found.append(name)
    return found


@pytest.mark.parametrize("name", _with_examples())
def test_examples(name):
    failed, tried = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert tried > 0
    assert failed == 0


def test_the_losses_have_one_each():
    names = {"hf_reprot.losses.transport", "hf_reprot.losses.distillation", "hf_reprot.losses.l2sp"}
    names |= {type_.__module__ for type_ in vars(baselines).values() if isinstance(type_, type)}
    assert names - {"hf_reprot.losses.baselines.base"} <= set(_with_examples())
