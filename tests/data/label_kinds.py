"""The table of label columns that are taken, and what they mean: tests run each row, and docs/data.md shows it.

python -m tests.data.label_kinds    # prints the table as it stands in docs/data.md
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, List, Value

MULTI, SINGLE, REGRESSION = "multi_label_classification", "single_label_classification", "regression"
ABC = ("a", "b", "c")


@dataclass(frozen=True)
class Kind:
    """A column of labels, a student, and the labels of its batch; `refused` is a part of the error instead."""

    feature: Any
    values: tuple[Any, ...]
    outputs: int = 3
    problem: str | None = None
    labels: tuple[Any, ...] | None = None
    becomes: str = ""
    names: tuple[str, ...] | None = None
    refused: str | None = None

    @property
    def type(self) -> str:
        """The type as the docs show it."""
        if isinstance(self.feature, ClassLabel):
            return f"ClassLabel({', '.join(self.feature.names)})"
        if isinstance(self.feature, Value):
            return self.feature.dtype
        inner = Kind(self.feature.feature, ()).type
        return f"List({inner})"


KINDS = (
    Kind(ClassLabel(names=list(ABC)), (2, 0, 1, 1), labels=(2, 0, 1, 1), becomes="class"),
    Kind(Value("int64"), (2, 0, 1, 1), labels=(2, 0, 1, 1), becomes="class"),
    Kind(Value("uint8"), (2, 0, 1, 1), labels=(2, 0, 1, 1), becomes="class"),
    Kind(Value("bool"), (True, False, True, True), outputs=2, labels=(1, 0, 1, 1), becomes="class"),
    Kind(Value("string"), ("c", "a", "b", "b"), labels=(2, 0, 1, 1), becomes="class, in alphabetical order"),
    Kind(
        Value("string"),
        ("c", "a", "b", "b"),
        names=("c", "b", "a"),
        labels=(0, 2, 1, 1),
        becomes="class of that name of the student",
    ),
    Kind(Value("float32"), (0.5, 1.5, -2.0, 0.0), 1, labels=(0.5, 1.5, -2.0, 0.0), becomes="number (regression)"),
    Kind(Value("int64"), (41, 7, 19, 23), 1, REGRESSION, (41.0, 7.0, 19.0, 23.0), "number (regression)"),
    Kind(
        List(Value("float32")),
        ((1.0, 0.0, 1.0), (0.0, 0.0, 0.0)),
        labels=((1.0, 0.0, 1.0), (0.0, 0.0, 0.0)),
        becomes="several classes (multi-hot)",
    ),
    Kind(
        List(Value("int64")),
        ((1, 0, 1), (0, 1, 0)),
        labels=((1.0, 0.0, 1.0), (0.0, 1.0, 0.0)),
        becomes="several classes (multi-hot)",
    ),
    Kind(
        List(Value("bool")),
        ((True, False, True), (False, True, False)),
        problem=MULTI,
        labels=((1.0, 0.0, 1.0), (0.0, 1.0, 0.0)),
        becomes="several classes (multi-hot)",
    ),
    Kind(
        List(ClassLabel(names=list(ABC))),
        ((2, 0), (), (1,), (1, 2)),
        labels=((1.0, 0.0, 1.0), (0.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 1.0, 1.0)),
        becomes="several classes, those in the list",
    ),
    Kind(
        List(Value("string")),
        (("c", "a"), (), ("b",), ("b", "c")),
        labels=((1.0, 0.0, 1.0), (0.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 1.0, 1.0)),
        becomes="several classes, those in the list; in alphabetical order",
    ),
    Kind(
        List(Value("float32")),
        ((0.5, -1.0, 3.0), (1.0, 2.0, 0.0)),
        problem=REGRESSION,
        labels=((0.5, -1.0, 3.0), (1.0, 2.0, 0.0)),
        becomes="numbers, one for each output (regression)",
    ),
    Kind(Value("float32"), (0.0, 1.0, 2.0, 1.0), refused=r"num_labels=1 and problem_type='regression'.*cast_column"),
    Kind(ClassLabel(names=["a", "b", "c", "d"]), (3, 0, 1, 1), refused="go up to class 3.*num_labels=4"),
    Kind(Value("int64"), (7, 0, 1, 1), refused="go up to class 7.*num_labels=8"),
    Kind(Value("int64"), (-2, 0, 1, 1), refused="hold -2, and classes are numbered from 0"),
    Kind(Value("int64"), (2, 0, 1, 1), problem=MULTI, refused="one class per sample.*problem_type='single_label"),
    Kind(Value("string"), ("a", "x", "b", "b"), names=ABC, refused="a, b, x.*a, b, c"),
    Kind(Value("string"), ("a", "b", "b", "a"), refused="2 classes.*num_labels=2"),
    Kind(List(Value("float32")), ((1.0, 0.0), (0.0, 1.0)), refused="lists of 2 numbers.*3 outputs.*num_labels=2"),
    Kind(List(Value("int64")), ((0, 2, 1), (2, 1, 0)), refused=r"no lists of 0 and 1.*List\(datasets.ClassLabel"),
    Kind(List(Value("int64")), ((1, 0, 1), (0, 1, 0)), problem=SINGLE, refused="problem_type='multi_label"),
    Kind(ClassLabel(names=list(ABC)), (2, 0, 1, 1), 1, REGRESSION, refused="are classes.*regression"),
)


def table() -> str:
    """The table in Markdown."""
    lines = ["| type of the column | `problem_type` of the student | outputs | what a label is |", "|---|---|---|---|"]
    for kind in KINDS:
        problem = f"`{kind.problem}`" if kind.problem is not None else "not set"
        meaning = kind.becomes if kind.refused is None else "refused"
        example = ", ".join(str(list(v) if isinstance(v, tuple) else v) for v in kind.values[:2])
        named = f"{kind.outputs} ({', '.join(kind.names)})" if kind.names is not None else str(kind.outputs)
        lines.append(f"| `{kind.type}`, as {example} | {problem} | {named} | {meaning} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
