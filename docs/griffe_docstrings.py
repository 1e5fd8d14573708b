"""Reads the package's docstrings as the site shows them: examples as code, whatever their heading adds."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

_HEADING = re.compile(r"^Example( \(.*\))?:$")


class ExamplesAsCode(griffe.Extension):
    """`Example:` becomes a section of examples, `Example (needs the Hub):` a block of code."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = with_examples_as_code(obj.docstring.value)


def with_examples_as_code(text: str) -> str:
    """A docstring whose examples a renderer of Google-style sections shows as code."""
    lines, result = text.splitlines(), []
    while lines:
        line = lines.pop(0)
        heading = _HEADING.match(line)
        if heading is None:
            result.append(line)
            continue
        body = []
        while lines and (not lines[0].strip() or lines[0].startswith(" ")):
            body.append(lines.pop(0))
        if heading[1] is None and any(row.lstrip().startswith(">>>") for row in body):
            result += ["Examples:", *body]
        else:
            code = textwrap.dedent("\n".join(body)).strip()
            result += [f"Example{heading[1] or ''}:", "", "```python", code, "```", ""]
    return "\n".join(result)
