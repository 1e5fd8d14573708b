"""Dataclasses from JSON: the right types only."""

from dataclasses import dataclass, field

import pytest

from hf_reprot.utils.strict_json import from_mapping


@dataclass
class Inner:
    number: float
    name: str | None = None


@dataclass
class Outer:
    inner: Inner
    items: list[Inner] = field(default_factory=list)
    table: dict[str, int | float] = field(default_factory=dict)
    flag: bool = False


def test_types_are_kept():
    outer = from_mapping(Outer, {"inner": {"number": 1}, "items": [{"number": 2.5, "name": "x"}], "table": {"a": 1}})
    assert outer == Outer(Inner(1.0), [Inner(2.5, "x")], {"a": 1})
    assert isinstance(outer.inner.number, float)
    assert isinstance(outer.table["a"], int)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "Outer must be a mapping, got list"),
        ({}, "lacks the field 'inner'"),
        ({"inner": {"number": True}}, "inner.number must be float, got bool True"),
        ({"inner": {"number": 1, "nmae": "x"}}, "Did you mean 'name'"),
        ({"inner": {"number": 1}, "flag": 1}, "flag must be bool, got int 1"),
        ({"inner": {"number": 1}, "items": {}}, "items must be a list, got dict"),
        ({"inner": {"number": 1}, "items": [{"number": "1"}]}, r"items\[0\].number must be float"),
        ({"inner": {"number": 1}, "table": {"a": "b"}}, "table.a must be one of int, float"),
    ],
)
def test_everything_else_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        from_mapping(Outer, data)
