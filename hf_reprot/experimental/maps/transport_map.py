"""`TransportMap`: from samples of two laws, unpaired, to the map that carries the one to the other."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ...utils.messages import check_choice
from .entropic import GRID, Entropic, choose
from .gaussian import Linear
from .learn import Referee, by_w2gan, held_out, referee, some
from .network import Residual, Schedule

METHODS = ("entropic", "gaussian", "w2gan")
STARTS = ("gaussian", "identity")
# Samples of each side at least: two to have a covariance, and for a method that holds some out to choose by.
_LEAST, _LEAST_HELD_OUT = 2, 20
_MOST_TO_CHOOSE = 1024  # samples of each side
_RATE = 2e-4  # of the networks
_FORMAT = "hf_reprot.TransportMap"


@dataclass
class MapReport:
    """How a fit went.

    Attributes:
        divergence_start: Sinkhorn divergence between held-out targets and what the start (Gaussian map or identity)
            makes of held-out points, in units of the targets' squared scale; None for "gaussian".
        divergence: The same for the fitted map: how well the images fit, not whether the way there is the shortest.
        relative_epsilon: Of an entropic map; None where the start alone was best, and for other methods.
        steps: Of the network's training.
        history: (steps, divergence) at every check.
    """

    divergence_start: float | None = None
    divergence: float | None = None
    relative_epsilon: float | None = None
    steps: int = 0
    history: list[tuple[int, float]] = field(default_factory=list)


class TransportMap(nn.Module):
    """The map that carries one set of points to another at the least squared distance, learned without pairs.

        T = argmin E|x - T(x)|^2   over the maps whose images T(x) have the law of y

    For features of a student and a teacher that never saw the same images. Where they did, regress on the pairs
    instead: it is simpler and better. Transport knows the two laws only, and the shortest way between them need not
    send an image's features to the same image's features. Where the two spaces are turned against each other it does
    not: align them first, by Procrustes or regression on a few pairs. Both need one dimension: project first.

    | method | what it is | take it when |
    |---|---|---|
    | "entropic" | Gaussian map, then Sinkhorn's potentials extended to all points | the default; nothing is trained |
    | "gaussian" | linear, closed form, shrunk covariances | features of networks, few samples; the control for all |
    | "w2gan" | a network and an adversary | to compare with the original |

    A map that fits the targets' law better need not serve a head better: between features of two networks the linear
    one did best (`studies/experimental/map_unpaired_features.py`), for known maps the entropic
    (`studies/experimental/map_gaussians.py`).

    Points are centred and brought to one scale first, which commutes with optimal maps. A fitted map is a module:
    calling it is differentiable in x, `transform` is not.

    Args:
        dim: d, of both spaces.
        method: See above.
        start: What the map begins at: "gaussian", or "identity" (the centres are matched all the same). Not used by
            "gaussian".
        relative_epsilon: Blur in units of the mean cost. None: "entropic" chooses by cross-validation, and may choose
            the start alone.
        debiased: Centre the entropic map, which keeps it from shrinking toward the mean.
        shrinkage: Of the covariances, 0 to 1; None: by the number of samples (OAS).
        width, depth: Hidden layers of the networks.
        steps, batch_size, learning_rate: Of the networks' training. learning_rate None: 2e-4; the critic has five
            times that of the map.
        patience: Checks, one every 25 steps, without a gain on held-out points after which training stops; the best
            weights are kept, which may be the start's.
        penalty: Of W2GAN's constraints.
        max_samples: Of each side that "entropic" keeps, drawn by chance.
        seed: Of everything drawn.
        progress: Show a bar while a network is trained.

    Raises:
        ValueError: settings that are not legal.

    Example:
        >>> import torch
        >>> from hf_reprot.experimental.maps import TransportMap
        >>> generator = torch.Generator().manual_seed(0)
        >>> x, y = (torch.randn(n, 2, generator=generator) for n in (300, 400))
        >>> moved = TransportMap(2).fit(x, 3 * y + 5).transform(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
        >>> bool((moved - torch.tensor([[5.0, 5.0], [8.0, 5.0]])).abs().max() < 0.6)
        True

    References: Pooladian, Niles-Weed, "Entropic estimation of optimal transport maps", 2021 (arXiv 2109.12004), and on
    debiasing 2202.08919. Leygonie, She, Almahairi, Rajeswar, Courville, "Adversarial Computation of Optimal Transport
    Maps", 2019 (arXiv 1906.09691).
    """

    mean_x: Tensor
    mean_y: Tensor
    scale: Tensor

    def __init__(
        self,
        dim: int,
        method: str = "entropic",
        *,
        start: str = "gaussian",
        relative_epsilon: float | None = None,
        debiased: bool = True,
        shrinkage: float | None = None,
        width: int = 128,
        depth: int = 2,
        steps: int = 500,
        batch_size: int = 256,
        learning_rate: float | None = None,
        patience: int = 8,
        penalty: float = 10.0,
        max_samples: int = 2048,
        seed: int = 0,
        progress: bool = False,
    ):
        super().__init__()
        check_choice("method", method, METHODS)
        check_choice("start", start, STARTS)
        self.settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        _check_settings(self.settings)
        self.dim, self.method = dim, method
        for name in ("mean_x", "mean_y", "scale"):
            self.register_buffer(name, torch.zeros(() if name == "scale" else dim))
        self.map: nn.Module | None = None
        self.report: MapReport | None = None

    @property
    def fitted(self) -> bool:
        """Whether there is a map to apply: after `fit` or `load`."""
        return self.map is not None

    def forward(self, x: Tensor) -> Tensor:
        """T(x) (n, d) in x's dtype, computed in float32; differentiable in x."""
        if self.map is None:
            raise RuntimeError("this map has not been fitted yet: call fit(x, y) or TransportMap.load(path) first")
        self._check_points("x", x, least=0)
        with torch.autocast(device_type=x.device.type, enabled=False):
            return (self.mean_y + self.scale * self.map((x.float() - self.mean_x) / self.scale)).to(x.dtype)

    def transform(self, x: Tensor) -> Tensor:
        """T(x) (n, d) without a gradient."""
        with torch.no_grad():
            return self(x)

    def fit(self, x: Tensor, y: Tensor) -> TransportMap:
        """Learns the map from samples.

        Args:
            x: (n, d) where points come from; any float dtype, computed in float32 on their device.
            y: (m, d) where they go. No row belongs to any row of x.

        Returns:
            Itself, with `report`.

        Raises:
            TypeError, ValueError: points of another dimension or dtype, too few of them, or values that are not finite.
        """
        least = _LEAST if self.method == "gaussian" else _LEAST_HELD_OUT
        for name, points in (("x", x), ("y", y)):
            self._check_points(name, points, least)
            if bad := int((~torch.isfinite(points)).any(1).sum()):
                raise ValueError(f"{name} has values that are not finite, in {bad} of its {len(points)} rows")
        if x.device != y.device:
            raise ValueError(f"x is on {x.device} and y on {y.device}: bring them to one device")
        with torch.no_grad(), torch.autocast(device_type=x.device.type, enabled=False):
            x, y = x.detach().float(), y.detach().float()
            self.to(x.device)
            self.mean_x, self.mean_y = x.mean(0), y.mean(0)
            x, y = x - self.mean_x, y - self.mean_y
            scale = torch.stack([x.square().mean(), y.square().mean()]).amax().sqrt()
            self.scale = torch.where(scale > 0, scale, 1.0)
            x, y = x / self.scale, y / self.scale
        self.report = MapReport()
        self.map = self._fitted(x, y).requires_grad_(False).eval()
        return self

    def _fitted(self, x: Tensor, y: Tensor) -> nn.Module:
        settings = self.settings
        if self.method == "gaussian":
            return Linear.between(x, y, settings["shrinkage"])
        generator = torch.Generator().manual_seed(settings["seed"])
        if self.method == "entropic":
            return self._entropic(x, y, generator)
        (x, held_x), (y, held_y) = (held_out(points, generator) for points in (x, y))
        judge, start = referee(held_x, held_y), self._start(x, y)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings["seed"])
            model = Residual(start, self.dim, settings["width"], settings["depth"]).to(x.device)
            history = self._train(model, x, y, judge)
        divergences = [figure for _, figure in history]
        self.report = MapReport(divergences[0], min(divergences), steps=history[-1][0], history=history)
        return model

    @torch.no_grad()
    def _entropic(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Entropic | Linear:
        settings = self.settings
        given, debiased = settings["relative_epsilon"], settings["debiased"]
        grid = GRID if given is None else (given,)
        few_x, few_y = (some(points, _MOST_TO_CHOOSE, generator) for points in (x, y))
        epsilon, figure, at_start = choose(self._start, few_x, few_y, grid, debiased, generator)
        self.report = MapReport(at_start, figure, epsilon)
        start = self._start(x, y)
        if epsilon is None:
            return start
        kept_x, kept_y = (some(points, settings["max_samples"], generator) for points in (x, y))
        return Entropic.between(start, kept_x, kept_y, epsilon, debiased)

    def _start(self, x: Tensor, y: Tensor) -> Linear:
        if self.settings["start"] == "identity":
            return Linear(torch.eye(self.dim, dtype=x.dtype, device=x.device))
        return Linear.between(x, y, self.settings["shrinkage"])

    @torch.enable_grad()
    def _train(self, model: Residual, x: Tensor, y: Tensor, judge: Referee) -> list[tuple[int, float]]:
        s = self.settings
        rate = _RATE if s["learning_rate"] is None else s["learning_rate"]
        draws = torch.Generator(x.device).manual_seed(s["seed"])
        schedule = Schedule(s["steps"], s["batch_size"], rate, s["patience"], 25, judge, draws, self._track)
        return by_w2gan(model, x, y, schedule, s["penalty"], s["width"], s["depth"])

    def _track(self, steps: Iterable[int]) -> Iterable[int]:
        if not self.settings["progress"]:
            return steps
        from rich.progress import track

        return track(steps, description=f"transport map ({self.method})", transient=True)

    def save(self, path: str | Path) -> None:
        """Writes the fitted map and its settings into one safetensors file.

        An entropic map holds the samples that it was fitted on: to ship none, take "gaussian" or "w2gan".
        """
        from safetensors.torch import save_file

        if self.map is None:
            raise RuntimeError("this map has not been fitted yet: there is nothing to save")
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        header = {"format": _FORMAT, "kind": type(self.map).__name__, "settings": json.dumps(self.settings)}
        save_file(tensors, path, metadata=header)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> TransportMap:
        """Reads what `save` wrote.

        Raises:
            ValueError: a safetensors file of something else.
        """
        from safetensors import safe_open

        with safe_open(path, framework="pt", device=str(device)) as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header.get("format") != _FORMAT:
            raise ValueError(f"{path} does not hold a transport map")
        settings = json.loads(header["settings"])
        if settings.get("method") == "monge_gap":  # of version 0.1
            raise ValueError(
                f"{path} holds a map of method='monge_gap', which this version no longer has: fit it anew with one of "
                f"{', '.join(map(repr, METHODS))}"
            )
        settings.pop("gap_weight", None)  # of version 0.1
        loaded = cls(**settings)
        inside = {name.removeprefix("map."): value for name, value in tensors.items() if name.startswith("map.")}
        loaded.map = _empty(header["kind"], inside, loaded.settings)
        loaded.load_state_dict(tensors)
        return loaded.to(device).requires_grad_(False).eval()

    def _check_points(self, name: str, points: Tensor, least: int) -> None:
        if not isinstance(points, Tensor) or not points.is_floating_point():
            raise TypeError(f"{name} must be a float tensor, got {getattr(points, 'dtype', type(points).__name__)}")
        if points.ndim != 2 or points.shape[1] != self.dim:
            raise ValueError(
                f"{name} must have shape (n, {self.dim}), the dimension of this map, got {tuple(points.shape)}; sets "
                "of different dimensions must be projected to one first"
            )
        if len(points) < least:
            raise ValueError(f"{name} has {len(points)} samples, and method={self.method!r} needs {least} or more")


def _empty(kind: str, tensors: dict[str, Tensor], settings: dict) -> nn.Module:
    """A map of the shapes that a file holds, to be filled."""
    linear = Linear(torch.zeros(settings["dim"], settings["dim"]))
    if kind == "Linear":
        return linear
    if kind == "Residual":
        return Residual(linear, settings["dim"], settings["width"], settings["depth"])
    targets, potential, epsilon = (tensors[name] for name in ("targets", "potential", "epsilon"))
    return Entropic(linear, tensors.get("sources"), targets, potential, tensors.get("self_potential"), epsilon)


def _check_settings(settings: dict) -> None:
    for name, least in (
        ("dim", 1),
        ("width", 1),
        ("depth", 1),
        ("steps", 1),
        ("batch_size", 2),
        ("patience", 1),
        ("max_samples", _LEAST_HELD_OUT),
    ):
        if not isinstance(settings[name], int) or settings[name] < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {settings[name]!r}")
    for name in ("relative_epsilon", "learning_rate", "penalty"):
        value = settings[name]
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be a finite number above 0, got {value}")
    if settings["shrinkage"] is not None and not 0 <= settings["shrinkage"] <= 1:
        raise ValueError(f"shrinkage must be from 0 to 1, got {settings['shrinkage']}")
