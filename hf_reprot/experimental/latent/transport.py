"""`LatentTransport`: noise to features that look like a teacher's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelHubMixin
from huggingface_hub.utils import tqdm
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .card import latent_card
from .files import SETTINGS, SavedLatent
from .points import CELLS, checked, distinct, gaps, mix, neighbour_report, project, reach
from .semidiscrete import semidiscrete

# Entries of one table of noise against points, or of features that are mixed.
_ENTRIES = 1 << 22
# Samples that the report is made on.
_REPORTED = 2000


class LatentTransport(ModelHubMixin, library_name="hf_reprot", tags=["features", "optimal-transport"]):
    """A generator of features, without a network: semi-discrete transport from a Gaussian to cached features.

    Features y_i of a teacher, and noise z of the Gaussian N(0, I) in the span of their first principal components:

        T(z) = y_i,   i = argmin_j |z - y_j|^2 / 2 - h_j,   h such that every y_i is drawn as often as it was seen

    Each class has an h of its own, and classes come as often as they did. Where the features are apart the map jumps,
    so that nothing is drawn between the modes. With `mixing=0` it returns *features that it was fitted on*, each as
    often as a draw out of a bag would: then it is a store with a name for each entry, not a source of new features.
    `mixing` blends points of neighbouring cells that lie near each other. Who must not publish features of the training
    data must not publish this either: they are all in its file. It draws features, not inputs, so it can teach a head
    (or what comes after the cached layer), and no earlier layer.

    Args:
        dimension: Principal components that noise lives in; None: as many as the features have. Features come back
            whole, whatever it is.
        mixing: Blur between neighbouring cells, in units of the typical gap between the best and the second best; 0:
            none, every sample is a feature that was fitted.
        neighbours: Points are mixed that are no further apart than a point of the class is from its neighbour of this
            rank (median over the class).
        jitter: Gaussian noise on what is drawn, as a multiple of that distance (its length in all, not in each
            coordinate). It leaves the features' own subspace, where mixing does not.
        max_points: Features of a class that are kept at most, drawn at random: bounds file and time.
        steps: Steps of the fit; the error of the cells' masses falls as 1 / sqrt(steps).
        seed: Of the fit.

    Attributes:
        report: After `fit`: "mass_error" (L1, worst class), "mass_noise" (what exact masses would have shown on as many
            draws), and the nearest-neighbour distances of `neighbour_report`.

    Raises:
        ValueError: a setting out of range.

    Example:
        >>> import torch
        >>> from hf_reprot.experimental.latent import LatentTransport
        >>> labels = torch.arange(60) % 2
        >>> features = torch.randn(60, 16, generator=torch.Generator().manual_seed(0)) + 10 * labels[:, None]
        >>> latent = LatentTransport(dimension=4, steps=20).fit(features, labels)
        >>> drawn, drawn_labels = latent.sample(8)
        >>> drawn.shape, bool(((drawn.mean(1) > 5).long() == drawn_labels).all())
        (torch.Size([8, 16]), True)
        >>> latent.sample(5, label=1).shape
        torch.Size([5, 16])

    References: Liu et al., "Latent Space Optimal Transport for Generative Models", 2018 (arXiv 1809.05964), whose
    continuous map draws bridges between modes; An et al., "AE-OT", ICLR 2020, for the semi-discrete one.
    """

    def __init__(
        self,
        dimension: int | None = 32,
        *,
        mixing: float = 1.0,
        neighbours: int = 8,
        jitter: float = 0.0,
        max_points: int | None = None,
        steps: int = 500,
        seed: int = 0,
    ):
        counts = {"dimension": dimension, "neighbours": neighbours, "max_points": max_points, "steps": steps}
        for name, count in counts.items():
            if count is None and name in ("dimension", "max_points"):
                continue
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {count!r}")
        for name, number in (("mixing", mixing), ("jitter", jitter)):
            if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < math.inf:
                raise ValueError(f"{name} must be a finite number of at least 0, got {number!r}")
        self.dimension, self.neighbours, self.max_points = dimension, neighbours, max_points
        self.mixing, self.jitter, self.steps, self.seed = float(mixing), float(jitter), steps, int(seed)
        self.report: dict[str, float] = {}
        self.about: dict[str, Any] = {}
        self._labelled = False
        self._tensors: dict[str, Tensor] = {}

    @torch.no_grad()
    def fit(
        self,
        features: Tensor,
        labels: Tensor | None = None,
        *,
        held_out: Tensor | None = None,
        teacher: str | None = None,
        dataset: str | None = None,
        progress: bool = False,
    ) -> LatentTransport:
        """Finds the cells of the features. Takes place where the features are, in float32.

        Args:
            features: (n, d), finite.
            labels: (n,) Whole numbers; None: one law for all.
            held_out: (h, d) Features that are not fitted: the report then says how far fresh features lie.
            teacher: For the card: where the features come from, as a hub id.
            dataset: For the card: on what data.
            progress: Show a bar.

        Returns:
            Itself.

        Raises:
            TypeError: not tensors of numbers.
            ValueError: shapes that do not fit, or a feature that is not finite.
        """
        features, labels, held_out = checked(features, labels, held_out)
        self._labelled = labels is not None
        if labels is None:
            labels = torch.zeros(len(features), dtype=torch.long, device=features.device)
        classes, index = torch.unique(labels, return_inverse=True)
        generator = torch.Generator(features.device).manual_seed(self.seed)
        kept, kept_index, weights = distinct(features, index, self.max_points, generator)
        points = project(kept, self.dimension)
        sizes = torch.bincount(kept_index, minlength=len(classes)).tolist()  # `kept_index` is sorted
        with tqdm(total=self.steps, desc="Fitting cells", disable=not progress) as bar:
            plan = semidiscrete(
                pad_sequence(points.split(sizes), batch_first=True),
                pad_sequence(weights.split(sizes), batch_first=True),
                steps=self.steps,
                generator=generator,
                on_step=lambda *_: bar.update(),
            )
        held = plan.weights > 0
        self._tensors = {
            "features": kept,
            "points": (plan.points - plan.centre)[held],
            "offsets": plan.offsets[held],
            "weights": weights,
            "class_index": kept_index,
            "classes": classes,
            "class_weights": torch.bincount(index) / len(index),
            "gap": gaps(plan, generator),
            "reach": torch.stack([reach(part, self.neighbours) for part in kept.split(sizes)]),
        }
        worst = plan.mass_error.argmax()
        self.report = {"mass_error": plan.mass_error[worst].item(), "mass_noise": plan.mass_noise[worst].item()}
        drawn = self.sample(min(len(features), _REPORTED), generator=generator)
        self.report |= neighbour_report(drawn[0] if isinstance(drawn, tuple) else drawn, features, held_out)
        self.about = {"teacher": teacher, "dataset": dataset, "fitted_on": len(features)}
        self.about |= {"mixing": self.mixing, "jitter": self.jitter}  # what the report was measured with
        return self

    @torch.no_grad()
    def sample(
        self, n: int, label: int | Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Draws features.

        Args:
            n: How many.
            label: A class for all, or (n,) classes; None: as they came.
            generator: Source of the randomness, on the device of the fit.

        Returns:
            (n, d) features, float32; where it was fitted with labels and `label` is None, with their labels (n,).

        Raises:
            RuntimeError: not fitted yet.
            ValueError: a label that was not fitted, or n below 1.
        """
        self._check_fitted()
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        k, device = self._tensors["points"].shape[1], self.device
        if label is None and self._labelled:
            # By inversion: `multinomial` looks at its weights, and that stalls a device.
            mark = torch.rand(n, generator=generator, device=device)
            steps = self._tensors["class_weights"].cumsum(0)
            index = torch.searchsorted(steps, mark).clamp_max(len(steps) - 1)
        else:
            index = self._index_of(label, n)
        noise = torch.randn(n, k, generator=generator, device=device)
        drawn = self._map(noise, index)
        if self.jitter > 0:
            length = self.jitter * self._tensors["reach"][index, None] / math.sqrt(drawn.shape[1])
            drawn = drawn + length * torch.randn(drawn.shape, generator=generator, device=device)
        return (drawn, self._tensors["classes"][index]) if self._labelled and label is None else drawn

    @torch.no_grad()
    def transport(self, noise: Tensor, label: int | Tensor | None = None) -> Tensor:
        """T(z): (n, d) for noise (n, `latent_dimension`), without jitter: the same noise gives the same features.

        Raises:
            RuntimeError: not fitted yet.
            ValueError: noise of another width; a label that was not fitted, or none where it was fitted with labels.
        """
        self._check_fitted()
        if noise.ndim != 2 or noise.shape[1] != self.latent_dimension:
            raise ValueError(f"noise must be (n, {self.latent_dimension}), got {tuple(noise.shape)}")
        index = self._index_of(label, len(noise))
        return self._map(noise.to(self._tensors["points"]), index)

    def to(self, device: torch.device | str) -> LatentTransport:
        """Moves what was fitted to a device, in place."""
        self._tensors = {name: tensor.to(device) for name, tensor in self._tensors.items()}
        return self

    @property
    def device(self) -> torch.device:
        """Where features are drawn."""
        return self._fitted("features").device

    @property
    def width(self) -> int:
        """d, of the features."""
        return self._fitted("features").shape[1]

    @property
    def latent_dimension(self) -> int:
        """k, of the noise."""
        return self._fitted("points").shape[1]

    @property
    def labels(self) -> list[int] | None:
        """The classes it was fitted with; None without."""
        classes = self._fitted("classes").tolist()
        return classes if self._labelled else None

    # ---- files: `save_pretrained`, `from_pretrained` and `push_to_hub` of huggingface_hub ----

    def _save_pretrained(self, save_directory: Path) -> None:
        """A README.md that lies in the folder already is kept."""
        self._check_fitted()
        SavedLatent(self._settings(), self._tensors, self._labelled, self.report, self.about).write(save_directory)

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, map_location: str | torch.device = "cpu", **options: Any
    ) -> LatentTransport:
        """`map_location`: the device that the features come to."""
        known = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        saved = SavedLatent.read(model_id, map_location, **{name: options[name] for name in known if name in options})
        loaded = cls(**saved.settings)
        loaded.report, loaded.about, loaded._labelled = saved.report, saved.about, saved.labelled
        loaded._tensors = saved.tensors
        return loaded

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """As huggingface_hub's, in one commit; the card names the repository."""
        card = dict(options.pop("model_card_kwargs", None) or {})
        return super().push_to_hub(repo_id, model_card_kwargs={"repository": repo_id, **card}, **options)

    def generate_model_card(self, *, repository: str = "your-name/latent") -> ModelCard:
        """The card: what the file holds, what it was made from, and how near to the training features it draws."""
        held = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        return latent_card(held, self.labels, self._settings(), self.report, self.about, repository)

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in SETTINGS}

    def _map(self, noise: Tensor, index: Tensor) -> Tensor:
        held = self._tensors
        drawn = []
        cells = CELLS * held["features"].shape[1] if self.mixing > 0 else 0
        rows = max(_ENTRIES // max(len(held["points"]), cells), 1)
        for z, own in zip(noise.split(rows), index.split(rows), strict=True):
            scores = torch.addmm(held["offsets"], z, held["points"].T)
            scores = scores.masked_fill_(held["class_index"] != own[:, None], -torch.inf)
            drawn.append(mix(scores, held["features"], held["gap"][own], held["reach"][own], self.mixing))
        return torch.cat(drawn)

    def _index_of(self, label: int | Tensor | None, n: int) -> Tensor:
        """(n,) Places of labels among the classes."""
        classes = self._tensors["classes"]
        if not self._labelled:
            if label is not None:
                raise ValueError("fitted without labels: leave label out, or fit with labels")
            return torch.zeros(n, dtype=torch.long, device=classes.device)
        if label is None:
            raise ValueError(f"fitted with labels: give label, one of {self.labels}")
        wanted = torch.as_tensor(label, device=classes.device)
        if wanted.is_floating_point() or wanted.shape not in ((), (n,)):
            raise ValueError(f"label must be one whole number or {n} of them, got {tuple(wanted.shape)} {wanted.dtype}")
        wanted = wanted.long().expand(n).contiguous()
        index = torch.searchsorted(classes, wanted).clamp_max(len(classes) - 1)
        if bool((classes[index] != wanted).any()):
            unknown = wanted[classes[index] != wanted][0].item()
            raise ValueError(f"label {unknown} was not among those it was fitted with: {self.labels}")
        return index

    def _fitted(self, name: str) -> Tensor:
        self._check_fitted()
        return self._tensors[name]

    def _check_fitted(self) -> None:
        if not self._tensors:
            raise RuntimeError("nothing was fitted yet: call fit(features, labels), or load with from_pretrained")
