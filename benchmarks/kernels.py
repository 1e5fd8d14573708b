"""What the compiler makes of the Triton kernels, read without a GPU: python -m benchmarks.kernels

Compiles every kernel for NVIDIA's sm_80, sm_90 and sm_100 and reads the result with the tools that Triton's wheel
brings. `--check FILE` compares with a table that was printed before: exit code 1 and a line each where a kernel spills
registers, or has 10 % more or fewer instructions by the same version of Triton.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hf_reprot.ot.kernels.sweeps import add_columns, move, solve_pairs, sweep_rows

CAPABILITIES = (80, 90, 100)
ALLOWED = 0.1  # instructions more or fewer
# The kernels with the blocks and warps that `hf_reprot.ot.kernels.solver` launches for 16, 384, 2048 and 4096 columns.
VARIANTS = (
    (solve_pairs, 8, {"ROWS": 16, "COLUMNS": 16}),
    (solve_pairs, 16, {"ROWS": 16, "COLUMNS": 512}),
    (sweep_rows, 8, {"ROWS": 4, "COLUMNS": 2048}),
    (sweep_rows, 8, {"ROWS": 2, "COLUMNS": 4096}),
    (add_columns, 4, {"BLOCK": 128, "PARTS": 16}),
    (move, 8, {"COLUMNS": 2048}),
    (move, 8, {"COLUMNS": 4096}),
)
_INTEGERS, _NUMBERS, _COUNTS = (
    {"m", "n", "most", "parts", "growing"},
    {"tolerance", "more", "gain"},
    {"sweeps_out", "done"},
)
_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


class Compiled(NamedTuple):
    """One kernel for one architecture; bytes of shared memory, instructions without padding."""

    kernel: str
    architecture: str
    registers: int
    spilled: int
    shared: int
    instructions: int


def compiled(kernel, warps: int, constants: dict[str, int], capability: int) -> Compiled:
    """Compiles a kernel for pointers and a number of columns that are multiples of 16, as they are launched."""

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name in _INTEGERS:
            return "i32"
        return "fp32" if name in _NUMBERS else "*i32" if name in _COUNTS else "*fp32"

    kinds = {name: kind(name) for name in kernel.arg_names}
    even = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kinds) if kinds[name][0] == "*" or name == "n"}
    source = ASTSource(kernel, kinds, constexprs=constants, attrs=even)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        used = _read("cuobjdump", "-res-usage", file.name)
        listing = _read("nvdisasm", "-c", file.name)
    registers, stack, local = (int(re.search(rf"{name}:(\d+)", used)[1]) for name in ("REG", "STACK", "LOCAL"))
    lines = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*)$", listing, re.MULTILINE)
    name = f"{kernel.fn.__name__} {' x '.join(map(str, constants.values()))}"
    instructions = sum(not line.startswith("NOP") for line in lines)
    return Compiled(name, f"sm_{capability}", registers, stack + local, made.metadata.shared, instructions)


def table(rows: list[Compiled]) -> str:
    """As Markdown, under the version of Triton that made it."""
    lines = [f"Triton {triton.__version__}:", ""]
    lines.append("| kernel, block | architecture | registers | bytes spilled | bytes shared | instructions |")
    lines.append("|---|---|---|---|---|---|")
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def faults(rows: list[Compiled], text: str) -> Iterator[str]:
    """What is wrong with freshly compiled kernels, beside a table of earlier ones."""
    printed = {(cells[0], cells[1]): int(cells[5]) for cells in _cells(text)}
    same = f"Triton {triton.__version__}:" in text
    for row in rows:
        here = row.kernel, row.architecture
        if row.spilled:
            yield f"{row.kernel}, {row.architecture}: {row.spilled} bytes of registers are spilled"
        if here not in printed:
            yield f"{row.kernel}, {row.architecture}: not in the table"
        elif same and abs(row.instructions / printed[here] - 1) > ALLOWED:
            yield f"{row.kernel}, {row.architecture}: {row.instructions} instructions, {printed[here]} in the table"


def _cells(text: str) -> list[list[str]]:
    rows = (line.strip().strip("|").split("|") for line in text.splitlines() if re.match(r"\|.*\| sm_\d+ \|", line))
    return [[cell.strip() for cell in row] for row in rows]


def _read(tool: str, *arguments: str) -> str:
    return subprocess.run([_TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", type=Path, metavar="FILE", help="compare with the table in this file")
    asked = parser.parse_args()
    rows = [compiled(*variant, capability) for variant in VARIANTS for capability in CAPABILITIES]
    if asked.check is None:
        print(table(rows))
        return 0
    wrong = list(faults(rows, asked.check.read_text()))
    print("\n".join(wrong or [f"{len(rows)} compiled, none spills"]))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
