"""Runs what a study asks for and has no result yet; each result is a line of JSON, written as soon as it is there."""

from __future__ import annotations

import functools
import json
import platform
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress

from .bench import Bench
from .methods import FACTORS, FURTHER, METHODS
from .plan import TUNING_SEED, Setting, Study

_PACKAGES = ("torch", "transformers", "timm", "hf-reprot")


class Results:
    """The lines of one study's file.

    Args:
        path: The file; made by the first `add`.
        key: The entries that tell one run from another.
    """

    def __init__(self, path: Path, key: Sequence[str] = ("phase", "setting", "method", "factor", "labels", "seed")):
        self.path, self.key = path, tuple(key)
        text = path.read_text("utf-8") if path.is_file() else ""
        self._cut = bool(text) and not text.endswith("\n")  # a run that was killed may have left half a line
        lines = text.splitlines()
        self.lines = [line for line in map(_parsed, lines) if line is not None]
        self._by_key = {self._key(line): line for line in self.lines}

    def add(self, **line: Any) -> None:
        """Appends a line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" * self._cut + json.dumps(line) + "\n")
        self._cut = False
        self.lines.append(line)
        self._by_key[self._key(line)] = line

    def find(self, **key: Any) -> dict[str, Any] | None:
        """The line of one run, if it has been made."""
        return self._by_key.get(self._key(key))

    def where(self, **values: Any) -> list[dict[str, Any]]:
        """Lines with these values."""
        return [line for line in self.lines if all(line.get(name) == value for name, value in values.items())]

    def _key(self, line: dict[str, Any]) -> tuple:
        return tuple(line.get(name) for name in self.key)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


@dataclass(frozen=True)
class _Run:
    phase: str
    setting: Setting
    method: str
    factor: float
    labels: int
    seed: int

    @property
    def key(self) -> dict[str, Any]:
        return {
            "phase": self.phase,
            "setting": self.setting.name,
            "method": self.method,
            "factor": self.factor,
            "labels": self.labels,
            "seed": self.seed,
        }


def run_study(
    study: Study,
    results: Results,
    *,
    seconds: float | None = None,
    only: str | None = None,
    seeds: Sequence[int] | None = None,
) -> bool:
    """Makes the missing runs of a study.

    Args:
        study: The study.
        results: What is there already.
        seconds: Stop after this long; another call goes on.
        only: Only the setting of this name.
        seeds: Of the final runs, only those of these seeds; weights are chosen first all the same.

    Returns:
        Whether all is there.
    """
    bench = Bench(study)
    began = time.perf_counter()
    settings = [s for s in study.settings if only in (None, s.name)]
    if any(True for _ in _tuning(study, settings, results)) or not results.where(phase="machine"):
        results.add(phase="machine", cpu=_cpu(), threads=torch.get_num_threads(), versions=versions())
    with Progress() as progress:
        bar = progress.add_task("tuning", total=None)
        for run in _tuning(study, settings, results):
            progress.update(bar, description=f"{run.setting.name}: {run.method} x {run.factor:g}, seed {run.seed}")
            _make(bench, results, run)
            if seconds is not None and time.perf_counter() - began > seconds:
                return False
        final = [
            run for seed in seeds or range(study.seeds) for s in settings for run in _final(study, s, seed, results)
        ]
        missing = [run for run in final if results.find(**run.key) is None]
        progress.update(bar, total=len(missing), completed=0)
        for run in missing:
            progress.update(bar, description=f"{run.setting.name}: {run.method}, {run.labels} labels, seed {run.seed}")
            _make(bench, results, run)
            progress.advance(bar)
            if seconds is not None and time.perf_counter() - began > seconds:
                return False
    return True


def _tuning(study: Study, settings: Sequence[Setting], results: Results) -> Iterator[_Run]:
    """The runs that are missing to choose the weights; which they are follows from those that have been made."""
    if not study.tuning_labels:
        return
    for setting in settings:
        for method in sorted(study.methods_of(setting), key=lambda name: METHODS[name].beside is not None):
            # Alone in the loss, a term's weight is nothing that Adam sees.
            if METHODS[method].weight is None or METHODS[method].label_free:
                continue
            while factors := _next_factors(study, results, setting.name, method):
                for factor, seed in factors:
                    yield _Run("tuning", setting, method, factor, study.tuning_labels, seed)


def _next_factors(study: Study, results: Results, setting: str, method: str) -> list[tuple[float, int]]:
    """(factor, seed) of what is tried next; nothing where enough has been tried.

    First `FACTORS`; then the next one on a side, while the best so far is the last on that side and `FURTHER` has more.
    """
    seeds = range(TUNING_SEED, TUNING_SEED + study.tuning_seeds)
    done = {(line["factor"], line["seed"]) for line in results.where(phase="tuning", setting=setting, method=method)}
    tried = sorted({factor for factor, _ in done} | set(FACTORS))
    missing = [(factor, seed) for factor in tried for seed in seeds if (factor, seed) not in done]
    if missing:
        return missing
    best = chosen_factor(results, setting, method)
    lower = [factor for factor in FURTHER if factor < tried[0]]
    higher = [factor for factor in FURTHER if factor > tried[-1]]
    if best == tried[0] and lower:
        return [(max(lower), seed) for seed in seeds]
    if best == tried[-1] and higher:
        return [(min(higher), seed) for seed in seeds]
    return []


def _final(study: Study, setting: Setting, seed: int, results: Results) -> Iterator[_Run]:
    for method in study.methods_of(setting):
        for labels in study.labels:
            yield _Run("final", setting, method, chosen_factor(results, setting.name, method), labels, seed)


def chosen_factor(results: Results, setting: str, method: str) -> float:
    """The factor of a method's weight with the best mean accuracy on validation images; 1 where nothing was tried."""
    tried: dict[float, list[float]] = {}
    for line in results.where(phase="tuning", setting=setting, method=method):
        tried.setdefault(line["factor"], []).append(line["validation"])
    return max(tried, key=lambda factor: np.mean(tried[factor])) if tried else 1.0


def _make(bench: Bench, results: Results, run: _Run) -> None:
    how = METHODS[run.method]
    weight = how.weight[1] * run.factor if how.weight else None
    transport = None
    if how.beside:
        transport = METHODS[how.beside].weight[1] * chosen_factor(results, run.setting.name, how.beside)
    result = bench.run(run.setting, run.method, weight, run.labels, run.seed, transport)
    results.add(**run.key, **({} if weight is None else {"weight": weight}), **result, code=commit())


@functools.cache
def commit() -> str:
    """Of the code that runs, with "+" behind it where files differ from it; "" outside a clone."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        name = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno", "--", ":(top)*.py"], capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return name.stdout.strip() + "+" * bool(changed.stdout.strip())


def versions() -> dict[str, str]:
    """Of the packages that a result depends on."""
    return {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()}


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
