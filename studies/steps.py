"""How many steps a student needs: each method trained anew, whole schedule and all, for ever more steps.

Where a method's weight is the learning rate, the best of three is taken for each number of steps, on validation images.

`python -m studies.steps studies/steps.yaml`
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml
from rich.progress import track

from .bench import Bench, results_folder
from .grid import Results, commit
from .methods import FACTORS, METHODS
from .plan import Study, study_of
from .report import spread

KEY = ("setting", "method", "factor", "steps", "labels", "seed")


def run(study: Study, steps: list[int], results: Results) -> None:
    """Makes the missing runs.

    Args:
        study: Settings, methods, labels and seeds.
        steps: Numbers of steps to train for.
        results: Where they go.
    """
    for count in steps:
        bench = Bench(replace(study, steps=count))
        for seed in track(range(study.seeds), f"{count} steps"):
            for setting in study.settings:
                for method in study.methods:
                    for factor in _factors(method):
                        for labels in study.labels:
                            key = dict(zip(KEY, (setting.name, method, factor, count, labels, seed), strict=True))
                            if results.find(**key) is None:
                                weight = METHODS[method].weight[1] * factor
                                found = bench.run(setting, method, weight, labels, seed, None)
                                results.add(**key, weight=weight, **found, code=commit())


def _factors(method: str) -> Sequence[float]:
    return FACTORS if METHODS[method].weight[0] == "learning_rate" else (1.0,)


def _accuracies(results: Results, **key: object) -> dict[int, float]:
    """Test accuracy of each seed, with the factor that is best on validation images."""
    by_factor: dict[float, list[dict]] = {}
    for line in results.where(**key):
        by_factor.setdefault(line["factor"], []).append(line)
    if not by_factor:
        return {}
    best = max(by_factor.values(), key=lambda lines: np.mean([line["validation"] for line in lines]))
    return {line["seed"]: line["test"] for line in best}


def report(study: Study, steps: list[int], results: Results) -> str:
    """Tables in Markdown: accuracy by steps, and how many the method needs for the best that the first one reaches."""
    parts = [f"### {study.title}", study.notes.strip()]
    for setting in study.settings:
        for labels in study.labels:
            table = {
                (m, n): _accuracies(results, setting=setting.name, method=m, steps=n, labels=labels)
                for m in study.methods
                for n in steps
            }
            rows = [
                f"| {method} | " + " | ".join(spread(list(table[method, n].values())) for n in steps) + " |"
                for method in study.methods
            ]
            head = f"| {setting.name}, {labels} labels | " + " | ".join(f"{n} steps" for n in steps) + " |"
            parts.append("\n".join([head, "|---" * (1 + len(steps)) + "|", *rows]))
            first = study.methods[0]
            best = {seed: max(table[first, n].get(seed, 0.0) for n in steps) for seed in table[first, steps[0]]}
            for method in study.methods[1:]:
                needed = [_first(steps, table, method, seed, best[seed]) for seed in best]
                parts.append(f"{method}: as accurate as the best of {first} after {_range(needed)}.")
    return "\n\n".join(part for part in parts if part)


def read(path: Path) -> tuple[Study, list[int]]:
    """A study and its numbers of steps."""
    content = yaml.safe_load(path.read_text("utf-8"))
    steps = content.pop("steps")
    return study_of(content, path), steps


def _first(steps: list[int], table: dict, method: str, seed: int, accuracy: float) -> float:
    return next((n for n in steps if table[method, n].get(seed, 0.0) >= accuracy), np.inf)


def _range(needed: list[float]) -> str:
    lowest, highest = min(needed), max(needed)
    if np.isinf(highest):
        return f"more steps than were tried in {sum(map(np.isinf, needed))} of {len(needed)} seeds"
    return f"{lowest:.0f} steps in all seeds" if lowest == highest else f"{lowest:.0f} to {highest:.0f} steps"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.steps", description=__doc__)
    parser.add_argument("file", type=Path, help="a study with a list of steps, such as studies/steps.yaml")
    parser.add_argument("--results", type=Path, default=results_folder(), help="folder of the results")
    parser.add_argument("--report", action="store_true", help="run nothing")
    given = parser.parse_args()
    study, steps = read(given.file)
    results = Results(given.results / f"{study.name}.jsonl", KEY)
    if not given.report:
        run(study, steps, results)
    print(report(study, steps, results))


if __name__ == "__main__":
    main()
