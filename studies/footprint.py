"""What each method of a study costs: time of a training step, and the most memory that one takes.

python -m studies.footprint studies/distil.yaml

Every method is trained for a few steps beside a live teacher (the studies themselves remember a teacher's features), in
turn, some rounds of it. Seconds are medians over the rounds; memory is the peak of the tensors alive above those at the
start, which does not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import gc
import itertools
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch.profiler import ProfilerActivity, profile

from .bench import Bench, results_folder
from .grid import Results, versions
from .methods import METHODS
from .plan import Setting, Study, read

_STEPS, _MEMORY_STEPS, _ROUNDS = 30, 3, 5


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.footprint", description=__doc__)
    parser.add_argument("file", type=Path, help="a study, such as studies/distil.yaml")
    parser.add_argument("--results", type=Path, default=results_folder(), help="folder of the results")
    parser.add_argument("--only", help="only the setting of this name")
    given = parser.parse_args()
    study = read(given.file)
    study = replace(study, settings=[s for s in study.settings if given.only in (None, s.name)])
    results = Results(given.results / f"{study.name}_footprint.jsonl")
    for line in measure(study):
        results.add(**line)
    print(footprint_table(study, results))


def measure(study: Study) -> list[dict]:
    """A line for each method in each setting: medians of seconds, and bytes."""
    images = dict(study.images) | {"validation": 100, "test": 100}
    timed = Bench(replace(study, images=images, steps=_STEPS), live=True)
    weighed = Bench(replace(study, images=images, steps=_MEMORY_STEPS), live=True)
    lines = []
    for setting in study.settings:
        methods = [name for name in study.methods_of(setting) if not METHODS[name].label_free]
        seconds = defaultdict(list)
        rounds = list(itertools.product(range(_ROUNDS), methods))
        for _, method in track(rounds, setting.name):
            _run(timed, setting, method)
            seconds[method].append(timed.train_seconds / _STEPS)
        for method in methods:
            lines.append(
                {
                    "phase": "footprint",
                    "setting": setting.name,
                    "method": method,
                    "step_seconds": float(np.median(seconds[method])),
                    "rounds": seconds[method],
                    "peak_bytes": _peak(weighed, setting, method),
                    "threads": torch.get_num_threads(),
                    "versions": versions(),
                }
            )
    return lines


def _run(bench: Bench, setting: Setting, method: str) -> None:
    how = METHODS[method]
    weight = how.weight[1] if how.weight else None
    bench.run(setting, method, weight, bench.study.labels[-1], 0, METHODS["transport"].weight[1])


def _peak(bench: Bench, setting: Setting, method: str) -> int:
    """Bytes of tensors at the highest point of a short training, above those at its start."""
    _run(bench, setting, method)  # what is made once and kept is there
    gc.collect()  # nothing that was there before may go while it is measured
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        _run(bench, setting, method)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        _run(bench, setting, method)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return int(np.cumsum([event.nbytes() for event in events]).max())


def footprint_table(study: Study, results: Results) -> str:
    """A row a method: milliseconds a step and megabytes, and both against the student alone."""
    names = [s.name for s in study.settings if results.where(phase="footprint", setting=s.name)]
    head = ["", *(f"{name}: {what}" for name in names for what in ("ms a step", "peak, MB"))]
    rows = [head, ["---"] * len(head)]
    for method in dict.fromkeys(m for s in study.settings for m in study.methods_of(s)):
        cells = []
        for name in names:
            line = results.find(phase="footprint", setting=name, method=method)
            alone = results.find(phase="footprint", setting=name, method="student alone")
            if line is None:
                continue
            ratios = [a / b for a, b in zip(line["rounds"], alone["rounds"], strict=True)]
            more = (line["peak_bytes"] - alone["peak_bytes"]) / 1e6
            cells += [
                f"{1e3 * line['step_seconds']:.1f} ({np.median(ratios):.2f} times)",
                f"{line['peak_bytes'] / 1e6:.1f} ({more:+.1f})",
            ]
        if cells:
            rows.append([method, *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    main()
