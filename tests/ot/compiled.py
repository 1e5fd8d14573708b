"""Compiles the kernels for NVIDIA's sm_80 and sm_90, which needs no device: python -m tests.ot.compiled."""

from __future__ import annotations

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hf_reprot.ot.kernels.sweeps import add_columns, move, solve_pairs, sweep_rows

_INTEGERS, _NUMBERS = {"m", "n", "most", "parts", "growing"}, {"tolerance", "more", "gain"}
_COUNTS = {"sweeps_out", "done"}


def compile_for(capability: int, kernel, warps: int, **constants: int) -> None:
    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name in _INTEGERS:
            return "i32"
        return "fp32" if name in _NUMBERS else "*i32" if name in _COUNTS else "*fp32"

    source = ASTSource(kernel, {name: kind(name) for name in kernel.arg_names}, constexprs=constants)
    triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})


if __name__ == "__main__":
    for capability in (80, 90):
        compile_for(capability, solve_pairs, 16, ROWS=16, COLUMNS=512)
        compile_for(capability, solve_pairs, 8, ROWS=1, COLUMNS=1)
        compile_for(capability, sweep_rows, 8, ROWS=4, COLUMNS=2048)
        compile_for(capability, add_columns, 4, BLOCK=128, PARTS=16)
        compile_for(capability, move, 8, COLUMNS=2048)
