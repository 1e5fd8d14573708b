"""All that only a GPU can tell, by one command: does it run, how fast is it, what does it cost.

    python -m benchmarks.gpu --minutes 6 --out DIR          # measures; DIR/results.json and DIR/results.md
    python -m benchmarks.gpu --report DIR                   # writes what was measured into docs/evidence/speed.md
    python -m benchmarks.gpu --rehearse --out DIR           # the same on the CPU, on problems of toy size

No network, and neither POT nor `datasets`: what is not installed is left out, which the results say. Each part has its
own time box; what a part does not need, those after it get. Results are written as they come: a run that is cut off
leaves what it had. The parts that matter most come first:

    device      what the device is, and its ceilings: a copy, matrix products, a launch
    checks      the tests marked `cuda`: kernels against float64, mixed precision, compile, DDP, FSDP2
    solver      the solver beside the other packages' that can be imported
    steps       a training step with and without transport, beside logit distillation written by hand; memory
    training    a small training to its end, its student saved and loaded
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import warnings
from pathlib import Path

from rich.console import Console

from . import checks, device, solver, steps, training
from .report import DOCS, write_report
from .results import Results
from .sizes import FULL, TOY
from .time_box import run_parts

# Each with its share of the time.
PARTS = {
    "device": (device.measure, 0.05),
    "checks": (checks.measure, 0.25),
    "solver": (solver.measure, 0.25),
    "steps": (steps.measure, 0.3),
    "training": (training.measure, 0.15),
}
_GRACE = 60  # seconds after which a run that hangs in the device is ended


def main(arguments: list[str] | None = None) -> int:
    """The command; 0, or 1 where a part failed, or 2 where it cannot run."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=6, help="for all parts together")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where results go")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--commit", help="of the code, where there is no git to ask")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, on problems of toy size")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write the results of this folder into the docs")
    asked = parser.parse_args(arguments)
    console = Console()
    if (asked.out is None) == (asked.report is None):
        parser.error("give either --out DIR, to measure, or --report DIR, to write up what was measured")
    if asked.report is not None:
        try:
            write_report(asked.report, DOCS)
        except ValueError as error:
            parser.error(str(error))
        console.print(f"written: {DOCS}")
        return 0
    sizes = TOY if asked.rehearse else FULL
    if not device.is_there(sizes.device):
        parser.error("there is no CUDA device: --rehearse runs the same on the CPU, on problems of toy size")
    warnings.filterwarnings("ignore")
    results = Results(asked.out, device.facts(sizes.device, asked.commit), console)
    watch = threading.Timer(60 * asked.minutes + _GRACE, _give_up, [results])
    watch.daemon = True
    watch.start()
    run_parts({name: PARTS[name] for name in PARTS if name in asked.parts}, results, sizes, 60 * asked.minutes)
    watch.cancel()
    console.print(f"results: {results.folder / 'results.md'}")
    return int(results.failed)


def _give_up(results: Results) -> None:
    results.note("device", "The run hung, and was ended: what follows is what it had by then.")
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
