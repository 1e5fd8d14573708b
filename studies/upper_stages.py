"""Fine-tuning of a pretrained network's upper stages, against the baselines that decide.

All below the last two stages is frozen, so that it is computed once for every view of every image, and fine-tuning at
128 pixels runs to convergence on one core. `python -m studies.upper_stages studies/upper_stages.yaml`
"""

from __future__ import annotations

import argparse
import copy
import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rich.progress import track
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from hf_reprot.losses import L2SP, GaussianTransport, RepresentationTransport

from . import images
from .bench import results_folder, weights_digest
from .grid import Results, commit
from .pretrained import normalised, trunk
from .report import paired, spread

NETWORKS = ("efficientnet-lite0", "mobilenet-v2")
FACTORS = (0.2, 1.0, 5.0)
_TUNING_SEEDS = (100, 101)
_STAGES = 2  # that are trained
_BATCH = 100


@dataclass(frozen=True)
class Way:
    """One way to fine-tune.

    Attributes:
        probe_first: The head is the linear probe's to begin with (LP-FT), not a random one.
        term: A term beside the task's loss, and the weight around which its own is chosen.
        norms_only: Only scales and shifts of the normalisations are trained, and the head.
        rolled: The term's teacher gives each image the representation of another.
    """

    probe_first: bool = True
    term: tuple[str, float] | None = None
    norms_only: bool = False
    rolled: bool = False


WAYS: dict[str, Way] = {
    "fine-tuning": Way(probe_first=False),
    "LP-FT": Way(),
    "LP-FT, norms only": Way(norms_only=True),
    "LP-FT + L2-SP": Way(term=("l2sp", 0.1)),
    "LP-FT + random pairing": Way(term=("random", 2.0)),
    "LP-FT + transport": Way(term=("sinkhorn", 2.0)),
    "LP-FT + Gaussian transport": Way(term=("gaussian", 2.0)),
    "LP-FT + rolled teacher": Way(term=("gaussian", 2.0), rolled=True),
}
# What is read off beside the runs: the probe, and the mean of its weights and those of LP-FT (WiSE-FT).
BESIDE = ("linear probe", "WiSE-FT")


@dataclass(frozen=True)
class Plan:
    """A grid: every way on every network, data set and number of labels."""

    name: str
    title: str
    networks: list[str]
    data: list[Mapping[str, Any]]  # arguments of `images.load`, and labels: how many
    seeds: int = 5
    steps: int = 100
    batch_size: int = 16
    learning_rate: float = 3e-4
    reference: str = "LP-FT"
    notes: str = ""
    ways: list[str] = field(default_factory=lambda: list(WAYS))


class Upper(nn.Module):
    """The last stages of a network of timm and a linear head, on what the stages below give.

    Args:
        network: With `blocks`, `conv_head`, `bn2` and `global_pool`.
        classes: Of the head.
    """

    def __init__(self, network: nn.Module, classes: int):
        super().__init__()
        stages = [copy.deepcopy(stage) for stage in network.blocks[-_STAGES:]]
        self.body = nn.Sequential(
            *stages, copy.deepcopy(network.conv_head), copy.deepcopy(network.bn2), copy.deepcopy(network.global_pool)
        )
        self.head = nn.Linear(network.conv_head.out_channels, classes)

    def train(self, mode: bool = True) -> Upper:
        super().train(mode)
        self.body.eval()  # few labels are no population to take means over
        return self


@dataclass
class Part:
    """Images as the stages below see them: maps of both views (images, 2, ...), representation of both, labels."""

    maps: Tensor
    features: Tensor
    labels: Tensor


class Upstairs:
    """Holds the networks and what they make of the images, once for all runs."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.network = functools.cache(trunk)
        self.parts = functools.lru_cache(maxsize=2)(self._parts)

    def _parts(self, name: str, data: int, split: int) -> tuple[dict[str, Part], int]:
        arguments = {k: v for k, v in self.plan.data[data].items() if k != "labels"}
        loaded, network = images.load(**arguments, split=split), self.network(name)
        upper = Upper(network, 1).eval()
        below = nn.Sequential(network.conv_stem, network.bn1, *network.blocks[:-_STAGES])
        parts = {}
        for part in ("train", "validation", "test"):
            pixels = getattr(loaded, part)
            views, maps, features = pixels.both_views(), [], []
            with torch.no_grad():
                for x in views.split(_BATCH):
                    maps.append(below(normalised(x, name)))
                    features.append(upper.body(maps[-1]))
            count = len(pixels)
            tables = (torch.cat(x).unflatten(0, (count, 2)) for x in (maps, features))
            parts[part] = Part(*tables, pixels.labels)
        return parts, loaded.classes

    def run(self, name: str, data: int, way: str, labels: int, seed: int, rate: float, weight: float) -> dict[str, Any]:
        """Accuracies of one way, and of what is read off beside it."""
        parts, classes = self.parts(name, data, images.split_of(self.plan.data[data]["name"], seed))
        train, how = parts["train"], WAYS[way]
        rows = few_of_each(train.labels.numpy(), labels, seed)
        torch.manual_seed(seed)
        upper = Upper(self.network(name), classes)
        began = time.perf_counter()
        probe = _probe(train.features[rows, 0].numpy(), train.labels[rows].numpy())
        if how.probe_first:
            _copy_probe(probe, upper.head)
        start = copy.deepcopy(upper)
        self._train(upper, train, rows, how, rate, weight, seed)
        result = {f"{way}:{p}": _accuracy(upper, parts[p]) for p in ("validation", "test")}
        if way == "LP-FT":
            result |= {f"linear probe:{p}": _accuracy(start, parts[p]) for p in ("validation", "test")}
            mean = copy.deepcopy(upper)
            with torch.no_grad():
                for ours, first in zip(mean.parameters(), start.parameters(), strict=True):
                    ours.lerp_(first, 0.5)
            result |= {f"WiSE-FT:{p}": _accuracy(mean, parts[p]) for p in ("validation", "test")}
        return result | {"seconds": round(time.perf_counter() - began, 2)}

    def _train(self, upper: Upper, train: Part, rows: Tensor, how: Way, rate: float, weight: float, seed: int) -> None:
        plan, generator = self.plan, torch.Generator().manual_seed(seed)
        term = _term(how, upper)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
        if how.norms_only:
            upper.body.requires_grad_(False)
            for module in upper.body.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.requires_grad_(True)
        trained = [p for p in upper.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
        warm = max(1, plan.steps // 10)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda s: s / warm if s < warm else 0.5 * (1 + math.cos(math.pi * (s - warm) / max(1, plan.steps - warm))),
        )
        upper.train()
        for batch in _batches(len(rows), plan.batch_size, plan.steps, generator):
            view = torch.randint(2, (len(batch),), generator=generator)
            features = upper.body(train.maps[rows[batch], view])
            loss = F.cross_entropy(upper.head(features), train.labels[rows[batch]])
            if term is not None:
                teacher = train.features[rows[order[batch] if how.rolled else batch], view]
                loss = loss + weight * term(features, teacher)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
        upper.eval()


def _term(how: Way, upper: Upper) -> Callable[[Tensor, Tensor], Tensor] | None:
    if how.term is None:
        return None
    name = how.term[0]
    if name == "l2sp":
        anchor = L2SP(upper, exclude=["head"])
        return lambda features, teacher: anchor().loss
    transport = GaussianTransport() if name == "gaussian" else RepresentationTransport(method=name)
    return lambda features, teacher: transport(features, teacher).loss


def few_of_each(labels: np.ndarray, count: int, seed: int) -> Tensor:
    """Numbers of `count` images, the classes in turn, so that each has one."""
    draw = np.random.default_rng(seed)
    by_class = [draw.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
    turns = [rows[i] for i in range(max(map(len, by_class))) for rows in by_class if i < len(rows)]
    return torch.from_numpy(np.array(turns[:count]))


def _batches(count: int, size: int, steps: int, generator: torch.Generator):
    made = 0
    while made < steps:
        order = torch.randperm(count, generator=generator)
        for i in range(max(1, count // size)):
            if made == steps:
                return
            made += 1
            yield order[i * size : (i + 1) * size]


def _probe(features: np.ndarray, labels: np.ndarray) -> LogisticRegression:
    return LogisticRegression(C=1.0, max_iter=2000).fit(features, labels)


def _copy_probe(probe: LogisticRegression, head: nn.Linear) -> None:
    weight, bias = torch.from_numpy(probe.coef_), torch.from_numpy(probe.intercept_)
    if len(head.bias) == 2:  # of two classes scikit-learn keeps the difference
        weight, bias = torch.cat([0 * weight, weight]), torch.cat([0 * bias, bias])
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)


@torch.no_grad()
def _accuracy(upper: Upper, part: Part) -> float:
    upper.eval()
    right = [
        (upper.head(upper.body(x)).argmax(-1) == y).sum()
        for x, y in zip(part.maps[:, 0].split(_BATCH), part.labels.split(_BATCH), strict=True)
    ]
    return float(sum(right)) / len(part.labels)


def read(path: str | Path) -> Plan:
    """Reads a plan's file."""
    return Plan(**yaml.safe_load(Path(path).read_text("utf-8")))


KEY = ("phase", "network", "data", "way", "rate", "factor", "labels", "seed")


def run(plan: Plan, results: Results) -> None:
    """Makes the missing runs: first learning rates, then weights, on seeds that no table shows; then the grid."""
    upstairs = Upstairs(plan)

    def make(phase: str, network: str, data: int, way: str, rate: float, factor: float, labels: int, seed: int) -> None:
        name = plan.data[data]["name"]
        key = dict(zip(KEY, (phase, network, name, way, rate, factor, labels, seed), strict=True))
        if results.find(**key) is None:
            weight = factor * WAYS[way].term[1] if WAYS[way].term else 0.0
            found = upstairs.run(network, data, way, labels, seed, rate * plan.learning_rate, weight)
            digest = weights_digest(upstairs.network(network), without="classifier.")
            results.add(**key, **found, teacher=digest, code=commit())

    first = plan.networks[0]  # what is chosen on the first network holds for the others
    for data in range(len(plan.data)):
        name, labels = plan.data[data]["name"], sorted(plan.data[data]["labels"])[-1]
        for with_term in (False, True):
            for way in (way for way in plan.ways if (WAYS[way].term is not None) == with_term):
                for value in FACTORS:
                    rate = chosen(results, first, name, "LP-FT")[0] if with_term else value
                    for seed in _TUNING_SEEDS:
                        make("tuning", first, data, way, rate, value if with_term else 1.0, labels, seed)
        for network in plan.networks:
            for seed in track(range(plan.seeds), f"{network}, {name}"):
                for labels in plan.data[data]["labels"]:
                    for way in plan.ways:
                        make("final", network, data, way, *chosen(results, first, name, way), labels, seed)


def chosen(results: Results, network: str, data: str, way: str) -> tuple[float, float]:
    """(rate, factor) with the best mean accuracy on validation images; a way with a term has LP-FT's rate."""
    tried: dict[tuple[float, float], list[float]] = {}
    for line in results.where(phase="tuning", network=network, data=data, way=way):
        tried.setdefault((line["rate"], line["factor"]), []).append(line[f"{way}:validation"])
    return max(tried, key=lambda pair: np.mean(tried[pair])) if tried else (1.0, 1.0)


def report(plan: Plan, results: Results) -> str:
    """Everything that was found, in Markdown."""
    parts = [f"### {plan.title}", plan.notes.strip()]
    parts.append(
        f"Test accuracy in %, mean ± standard deviation over {plan.seeds} seeds; beside it the difference to "
        f"{plan.reference} on the same seeds, ± half of its 95 % interval (in how many seeds ahead)."
    )
    for network in plan.networks:
        for data in plan.data:
            if results.where(phase="final", network=network, data=data["name"]):
                parts.append(_table(plan, results, network, data))
    return "\n\n".join(part for part in parts if part)


def _table(plan: Plan, results: Results, network: str, data: Mapping[str, Any]) -> str:
    def accuracies(way: str, labels: int) -> dict[int, float]:
        read_off = "LP-FT" if way in BESIDE else way
        lines = results.where(phase="final", network=network, data=data["name"], way=read_off, labels=labels)
        return {line["seed"]: line[f"{way}:test"] for line in lines}

    rows = []
    for way in (*BESIDE, *plan.ways):
        cells = []
        for labels in data["labels"]:
            values = accuracies(way, labels)
            cells.append(spread(list(values.values())) if values else "")
            mean, half, ahead, count = paired(values, accuracies(plan.reference, labels))
            shown = way != plan.reference and count > 1
            cells.append(f"{100 * mean:+.1f} ± {100 * half:.1f} ({ahead} of {count})" if shown else "")
        rows.append(f"| {way} | " + " | ".join(cells) + " |")
    columns = [c for n in data["labels"] for c in (f"{n} labels", f"against {plan.reference}")]
    head = f"| {network}, {data['name']} | " + " | ".join(columns) + " |"
    return "\n".join([head, "|---" * (1 + len(columns)) + "|", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.upper_stages", description=__doc__)
    parser.add_argument("file", type=Path, help="a plan, such as studies/upper_stages.yaml")
    parser.add_argument("--results", type=Path, default=results_folder(), help="folder of the results")
    parser.add_argument("--report", action="store_true", help="run nothing")
    given = parser.parse_args()
    plan = read(given.file)
    results = Results(given.results / f"{plan.name}.jsonl", KEY)
    if not given.report:
        run(plan, results)
    print(report(plan, results))


if __name__ == "__main__":
    main()
