"""`python -m studies FILE.yaml`: runs what is missing of a study and prints its tables."""

from __future__ import annotations

import argparse
from pathlib import Path

from .bench import results_folder
from .grid import Results, run_study
from .plan import read
from .report import report


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies", description=__doc__)
    parser.add_argument("file", type=Path, help="a study, such as studies/distil.yaml")
    parser.add_argument("--results", type=Path, default=results_folder(), help="folder of the results")
    parser.add_argument("--seconds", type=float, help="stop after this long; the same command goes on")
    parser.add_argument("--only", help="only the setting of this name")
    parser.add_argument("--seeds", type=int, nargs="+", help="only these: the others can run elsewhere meanwhile")
    parser.add_argument("--report", action="store_true", help="run nothing")
    given = parser.parse_args()
    study = read(given.file)
    results = Results(given.results / f"{study.name}.jsonl")
    some = {"seconds": given.seconds, "only": given.only, "seeds": given.seeds}
    if not given.report and not run_study(study, results, **some):
        print("stopped before the end: the same command goes on")
    print(report(study, results))


if __name__ == "__main__":
    main()
