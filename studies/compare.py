"""Methods against one another: each one's weight chosen on validation data, then a table over seeds.

What the examples share that compare transport with its controls. Every run is a line of a JSON-lines file, and is not
made again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from studies.grid import Results
from studies.methods import Method
from studies.report import paired, spread

Scores = dict[str, float]
TUNING_SEED = 100  # no run of the table has it


def compare(
    run: Callable[[Method, float, int], Scores],
    methods: Mapping[str, Method],
    *,
    seeds: int,
    factors: Sequence[float],
    path: str | Path,
    against: Sequence[str],
) -> None:
    """Runs what is missing and prints the table.

    Args:
        run: (method, weight of its own term, seed) -> scores, "validation" among them.
        methods: By name. One without a weight, or that is trained on its own term alone, is not tuned: the optimiser
            divides a single term by its size.
        seeds: Runs of each method in the table.
        factors: Weights that are tried, in units of the method's own.
        path: File of the runs.
        against: Methods to which the differences of the first score after "validation" are printed.
    """
    results = Results(Path(path), key=("method", "weight", "seed"))

    def scores(name: str, factor: float, seed: int) -> Scores:
        weight = methods[name].weight[1] * factor if methods[name].weight else 0.0
        key = {"method": name, "weight": weight, "seed": seed}
        made = results.find(**key)
        if made is None:
            made = key | {"scores": run(methods[name], weight, seed)}
            results.add(**made)
            print(f"seed {seed}: {name}, weight {weight:g}: {made['scores']}", flush=True)
        return made["scores"]

    chosen, found = {}, {}
    for name, method in methods.items():
        tuned = method.weight is not None and not method.label_free
        tried = {factor: scores(name, factor, TUNING_SEED)["validation"] for factor in (factors if tuned else ())}
        chosen[name] = max(tried, key=tried.get) if tried else 1.0
    for seed in range(seeds):  # the outer loop: a table that is not finished holds every method
        for name in methods:
            found.setdefault(name, {})[seed] = scores(name, chosen[name], seed)
    print(table(methods, chosen, found, against))


def table(methods: Mapping[str, Method], chosen: Scores, found: Mapping, against: Sequence[str]) -> str:
    """Markdown: mean ± standard deviation in %, and paired differences ± half of their 95 % interval."""
    measures = [name for name in next(iter(next(iter(found.values())).values())) if name != "validation"]
    head = ["method", "weight", *measures, *(f"{measures[0]}, against {other}" for other in against)]
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, runs in found.items():
        cells = [name, f"{methods[name].weight[1] * chosen[name]:g}" if methods[name].weight else ""]
        cells += [spread([scores[measure] for scores in runs.values()]) for measure in measures]
        for other in against:
            sides = [{seed: scores[measures[0]] for seed, scores in found[side].items()} for side in (name, other)]
            mean, half, ahead, count = paired(*sides)
            cells.append("" if name == other else f"{100 * mean:+.1f} ± {100 * half:.1f} ({ahead} of {count})")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)
