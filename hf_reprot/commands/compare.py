"""Compares two models' representations layer by layer: what `hf-reprot compare` runs."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from ..data.dataset_columns import image_columns
from ..data.datasets import load_image_dataset
from ..data.images import open_image
from ..data.preprocessing import Preprocessing
from ..features.activations import Activation, pair_neurons, pooled_neurons
from ..features.architecture import last_layer
from ..features.matching import LayerCosts, LayerPlan, candidate_layers, plan_layers, shuffled
from ..features.tables import TappedModel
from ..losses.baselines.alignment import linear_cka
from ..models.teacher import Teacher
from ..ot import solve
from ..ot.cost import cost_from_moments
from ..ot.moments import PairMoments, pair_moments
from ..plots.maps import layer_map_figure, layer_plan_figure, plan_figure
from ..plots.style import save_figure
from ..settings.names import COMPARED_LAYERS
from ..utils.messages import check_choice

_DEFAULT_SIZE = (224, 224)


@dataclass
class LayerMatch:
    """One layer of A against one of B.

    Attributes:
        a, b: The layers.
        widths: Neurons of each.
        cost: <P, M> of the optimal coupling of standardised neurons: 0 where every neuron has its twin, near 2 where
            none has anything like it.
        shuffled: The same after B's images were put into another order: what chance alone gives. The controls below
            do not optimise and give about 2 by chance.
        random: The cost of a fixed random pairing.
        independent: The cost of coupling everyone with everyone.
        identity: The cost of pairing neuron i with neuron i; None for different widths.
        cka: Linear centred kernel alignment (Kornblith et al., 2019): 1 for the same space up to rotation.
    """

    a: str
    b: str
    widths: tuple[int, int]
    cost: float
    shuffled: float
    random: float
    independent: float
    identity: float | None
    cka: float


@dataclass
class Comparison:
    """Two models compared on the same images; `matches` holds every pair of layers, row by row of A's layers."""

    a: str
    b: str
    samples: int
    positions: str
    a_layers: list[str]
    b_layers: list[str]
    matches: list[LayerMatch]
    plans: dict[tuple[str, str], Tensor] = field(default_factory=dict, repr=False)
    chance_plans: dict[tuple[str, str], Tensor] = field(default_factory=dict, repr=False)

    def values(self, name: str) -> Tensor:
        """(layers of A, layers of B) of one of `LayerMatch`'s numbers."""
        numbers = [float("nan") if getattr(m, name) is None else getattr(m, name) for m in self.matches]
        return torch.tensor(numbers).view(len(self.a_layers), len(self.b_layers))

    def closest(self) -> list[LayerMatch]:
        """For each layer of A, its match with the layer of B that costs least below chance."""
        gain = self.values("shuffled") - self.values("cost")
        width = len(self.b_layers)
        return [self.matches[i * width + int(j)] for i, j in enumerate(gain.argmax(1))]

    def layer_plan(self, order_prior: float = 0.0) -> LayerPlan:
        """The layers of A matched with those of B by transport over the costs between them (see `plan_layers`)."""
        cost = LayerCosts(self.values("cost"), self.values("shuffled")).relative()
        return plan_layers(cost, self.a_layers, self.b_layers, order_prior=order_prior)

    def table(self) -> Table:
        """The closest layer of B for each of A, beside the controls."""
        title = f"{self.a} against {self.b}: {self.samples} images, {self.positions}; cost of matching neurons"
        table = Table(title=title, box=SIMPLE)
        for name in ("layer of A", "closest in B"):
            table.add_column(name, no_wrap=True, overflow="ellipsis", max_width=11)
        table.add_column("widths", no_wrap=True, min_width=8)
        for name in ("match", "chan.", "rand.", "same", "CKA"):
            table.add_column(name, justify="right", no_wrap=True, min_width=5)
        table.caption = "chan.: B's images shuffled; rand.: a random pairing; same: neuron i with neuron i"
        for m in self.closest():
            identity = "-" if m.identity is None else f"{m.identity:.3f}"
            numbers = (f"{m.cost:.3f}", f"{m.shuffled:.3f}", f"{m.random:.3f}", identity, f"{m.cka:.3f}")
            table.add_row(_short(m.a), _short(m.b), f"{m.widths[0]} x {m.widths[1]}", *numbers)
        return table

    def figure(self) -> Figure:
        """Heat map of what the optimal coupling gains over chance."""
        return layer_map_figure(
            (self.values("shuffled") - self.values("cost")).numpy(),
            [_short(name) for name in self.a_layers],
            [_short(name) for name in self.b_layers],
            label="transport: how far below chance",
            lower_is_closer=False,
            title=f"{self.a} (rows) against {self.b} (columns)",
        )

    def layer_plan_figure(self) -> Figure:
        """Heat map of the cost between layers, as a multiple of chance, with the pairs of `layer_plan` framed."""
        plan = self.layer_plan()
        names = [[_short(name) for name in layers] for layers in (self.a_layers, self.b_layers)]
        title = f"{self.a} (rows) and {self.b} (columns): layers matched"
        return layer_plan_figure(plan.plan, plan.cost, *names, title=title)

    def cka_figure(self) -> Figure:
        """Heat map of linear CKA."""
        title = f"{self.a} (rows) against {self.b} (columns)"
        values, layers = self.values("cka").numpy(), [[_short(n) for n in ns] for ns in (self.a_layers, self.b_layers)]
        return layer_map_figure(values, *layers, label="linear CKA", lower_is_closer=False, title=title)

    def save(self, folder: str | os.PathLike) -> list[Path]:
        """Writes the numbers (JSON), the heat maps, the matching of layers and the plan of the last layer's match
        (PNG); returns the files."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        last = self.closest()[-1]
        axes = {"student": f"{self.a} {last.a}", "teacher": f"{self.b} {last.b}"}
        plan = plan_figure(self.plans[last.a, last.b], chance=self.chance_plans.get((last.a, last.b)), **axes)
        figures = {"transport.png": self.figure(), "cka.png": self.cka_figure(), "plan.png": plan}
        figures["layers.png"] = self.layer_plan_figure()
        files = [save_figure(figure, folder / name) for name, figure in figures.items()]
        numbers = {key: getattr(self, key) for key in ("a", "b", "samples", "positions", "a_layers", "b_layers")}
        path = folder / "comparison.json"
        path.write_text(json.dumps({**numbers, "matches": [asdict(m) for m in self.matches]}, indent=1), "utf-8")
        return [path, *files]


def compare_models(
    a: str | os.PathLike | nn.Module | Teacher,
    b: str | os.PathLike | nn.Module | Teacher,
    dataset: Any,
    *,
    split: str | None = None,
    samples: int = 256,
    positions: str = "pooled",
    layers: str | tuple[Sequence[str], Sequence[str]] = "blocks",
    batch_size: int = 32,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Comparison:
    """Matches every layer of A with every layer of B by transport between their neurons, on the same images.

    Args:
        a, b: Hub ids, folders, modules or `Teacher`s of image models.
        dataset: A `datasets.Dataset` of images, or what `load_image_dataset` takes.
        split: Which split of it; None: test, validation, or the first.
        samples: Images at most, drawn with `seed`. Few images and many neurons match well by chance, which the
            control `shuffled` shows.
        positions: "pooled" or "all", as in `pair_neurons`.
        layers: "blocks" (every block, then the representation before the head), "stages", "last", or two lists of
            module paths.
        batch_size: Images in a forward pass.
        device: Where the models run.
        seed: Draws the images and the order of the control.

    Raises:
        ValueError: models, layers or data that cannot be had or do not go together.
    """
    if isinstance(layers, str):
        check_choice("layers", layers, COMPARED_LAYERS)
    if samples < 2:
        raise ValueError(f"samples must be at least 2, got {samples}")
    models = [_prepared(model, device) for model in (a, b)]
    wanted = [layers] * 2 if isinstance(layers, str) else layers
    names = [_layers(model.model, want, positions) for model, want in zip(models, wanted, strict=True)]
    images = _images(dataset, split, samples, seed)
    moments, count = _collect(models, names, images, positions, batch_size, device, seed)
    matches, plans, chances = [], {}, {}
    for i, j in track(list(moments), description="matching layers", transient=True):
        match, plans[names[0][i], names[1][j]], chances[names[0][i], names[1][j]] = _match(
            names[0][i], names[1][j], *moments[i, j]
        )
        matches.append(match)
    titles = [Path(model.title).name if Path(model.title).exists() else model.title for model in models]
    found = (matches, plans, chances)
    return Comparison(titles[0], titles[1], count, positions, list(names[0]), list(names[1]), *found)


def _short(layer: str) -> str:
    return layer.removeprefix("timm_model.")


def _prepared(source: Any, device: str | torch.device) -> Teacher:
    teacher = Teacher.load(source)
    known = teacher.preprocessing is not None and teacher.preprocessing.size is not None
    if known and not isinstance(source, Teacher):
        teacher = Teacher(
            teacher.model,
            name=teacher.name,
            revision=teacher.revision,
            preprocessing=teacher.preprocessing,
            resize=True,  # each model sees the images at the size it was trained for
        )
    teacher.model.to(device)
    return teacher


def _layers(model: nn.Module, layers: str | Sequence[str], positions: str) -> list[str]:
    if not isinstance(layers, str):
        return list(layers)
    if layers == "last":
        return [last_layer(model, positions)]
    return candidate_layers(model, layers, positions)


def _images(dataset: Any, split: str | None, samples: int, seed: int) -> list[Any]:
    if isinstance(dataset, str | os.PathLike):
        dataset = load_image_dataset(dataset)
    if hasattr(dataset, "keys"):
        if split is not None and split not in dataset:
            raise ValueError(f"the data set has no split {split!r}: it has {', '.join(dataset)}")
        dataset = dataset[split or next((n for n in ("test", "validation") if n in dataset), next(iter(dataset)))]
    columns = image_columns(dataset)
    if columns is None:
        raise ValueError("the data set has no column of images")
    chosen = dataset.shuffle(seed=seed).select(range(min(samples, len(dataset))))
    return list(chosen[columns[0]])


def _collect(
    models: Sequence[Teacher],
    names: Sequence[Sequence[str]],
    images: Sequence[Any],
    positions: str,
    batch_size: int,
    device: str | torch.device,
    seed: int,
) -> tuple[dict[tuple[int, int], list], int]:
    """Moments of every pair of layers, of the images as they are and with B's images in another order."""
    pixels = Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3, size=_DEFAULT_SIZE)
    # Of pooled layers once per layer, not once per pair of layers: whole maps need not be kept
    pooled: list[list[dict[str, Tensor]]] = [[], []]
    whole: list[list[dict[str, Activation]]] = [[], []]
    with contextlib.ExitStack() as stack:
        tapped = [stack.enter_context(TappedModel(m.model, paths)) for m, paths in zip(models, names, strict=True)]
        for start in track(range(0, len(images), batch_size), description="reading images", transient=True):
            batch = _square(images[start : start + batch_size], models).to(device)
            for side, model in enumerate(models):
                inputs = model.inputs_for({"pixel_values": batch}, pixels)
                _, caught = tapped[side].run(partial(model, inputs))
                if positions == "pooled":
                    pooled[side].append({name: pooled_neurons(layer) for name, layer in caught.items()})
                else:
                    whole[side].append(caught)
    moments = {}
    for i, ours in enumerate(names[0]):
        for j, theirs in enumerate(names[1]):
            tables = [(x[ours], y[theirs]) for x, y in zip(*pooled, strict=True)]
            tables += [pair_neurons(x[ours], y[theirs], positions=positions) for x, y in zip(*whole, strict=True)]
            s, t = (torch.cat([table[side] for table in tables]) for side in (0, 1))
            order = shuffled(len(t), seed, t.device)
            cka = float(linear_cka(s.float(), t.float()))
            moments[i, j] = [pair_moments(s, t), pair_moments(s, t[order]), cka]
    return moments, len(images)


def _square(images: Sequence[Any], models: Sequence[Teacher]) -> Tensor:
    """(n, 3, side, side) in [0, 1]: the middle square of each image, at the larger of the models' sizes."""
    sizes = [model.size for model in models if model.size is not None] or [_DEFAULT_SIZE]
    side = max(max(size) for size in sizes)
    squares = []
    for image in images:
        opened = open_image(image)
        width, height = opened.size
        short = min(width, height)
        left, top = (width - short) // 2, (height - short) // 2
        cropped = opened.crop((left, top, left + short, top + short)).resize((side, side), resample=3)
        flat = torch.frombuffer(bytearray(cropped.tobytes()), dtype=torch.uint8)
        squares.append(flat.view(side, side, 3).permute(2, 0, 1))
    return torch.stack(squares).float() / 255


def _match(
    a: str, b: str, moments: PairMoments, shuffled: PairMoments, cka: float
) -> tuple[LayerMatch, Tensor, Tensor]:
    """The numbers of a pair of layers, its plan, and the plan of B's images in another order."""
    matrix = cost_from_moments(moments)
    best = solve(matrix)
    widths = (matrix.shape[0], matrix.shape[1])
    costs = {m: float(solve(matrix, method=m).cost) for m in ("random", "independent")}
    identity = float(solve(matrix, method="identity").cost) if widths[0] == widths[1] else None
    chance = solve(cost_from_moments(shuffled))
    match = LayerMatch(a, b, widths, float(best.cost), float(chance.cost), identity=identity, cka=cka, **costs)
    return match, best.plan, chance.plan
