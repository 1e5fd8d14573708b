"""The card of a generator of features."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

_TEXT = """---
{metadata}
---

# Features without data

{warning}

A `LatentTransport` of hf_reprot: {count:,} features of width {width}{origin}, and the cells of a Gaussian that
semi-discrete optimal transport gives them ([Liu et al., 2018](https://huggingface.co/papers/1809.05964), in the
discontinuous form of An et al., 2020). It draws features, to train or replay a classifier's head without images. It
cannot teach layers before the one that the features come from.

```python
from hf_reprot.experimental.latent import LatentTransport

latent = LatentTransport.from_pretrained("{repository}")
{example}
```

## How near to the training features

{neighbours}

## How it was fitted

| | |
|---|---|
{rows}
"""


def latent_card(
    shapes: Mapping[str, tuple[int, ...]],
    labels: list[int] | None,
    settings: Mapping[str, Any],
    report: Mapping[str, float],
    about: Mapping[str, Any],
    repository: str,
) -> ModelCard:
    """The card, from what is held and what was measured; nothing in it that is not known."""
    teacher, dataset = (public(about.get(name)) for name in ("teacher", "dataset"))
    data = ModelCardData(
        library_name="hf_reprot",
        tags=["features", "optimal-transport"],
        base_model=teacher if teacher and _HUB_ID.fullmatch(teacher) else None,
        datasets=[dataset] if dataset and (_HUB_ID.fullmatch(dataset) or "/" not in dataset) else None,
    )
    count, width = shapes["features"]
    origin = f" of `{teacher}`" if teacher else ""
    origin += f" on `{dataset}`" if dataset else ""
    example = "features, labels = latent.sample(64)" if labels is not None else "features = latent.sample(64)"
    rows = {"Features fitted on": f"{about.get('fitted_on', count):,}", "Dimensions of the noise": shapes["points"][1]}
    if labels is not None:
        rows["Classes"] = len(labels)
    rows |= {name: value for name, value in settings.items() if name not in ("dimension", "max_points")}
    rows["Error of the cells' masses (L1)"] = _number(report.get("mass_error"))
    rows["That exact masses would have shown"] = _number(report.get("mass_noise"))
    return ModelCard(
        _TEXT.format(
            metadata=data.to_yaml(),
            warning=_warning(settings),
            count=count,
            width=width,
            repository=repository,
            origin=origin,
            example=example,
            neighbours=_neighbours(report) + _measured_otherwise(settings, about),
            rows="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
        )
    )


def _warning(settings: Mapping[str, Any]) -> str:
    held = "> [!WARNING]\n> The file holds features of the training data as they are. Who has it has them."
    if settings["mixing"] == 0 and settings["jitter"] == 0:
        return held + " Every sample is one of them."
    return held + " Samples are one of them, or lie between a few of them."


def _neighbours(report: Mapping[str, float]) -> str:
    if "sample_to_training" not in report:
        return "Not measured."
    lines = ["| Median distance to the nearest | |", "|---|---:|"]
    lines.append(f"| training feature, from a sample | {_number(report['sample_to_training'])} |")
    if "ratio" in report:
        lines.append(f"| held-out feature, from a sample | {_number(report['sample_to_held_out'])} |")
        lines.append(f"| training feature, from a held-out feature | {_number(report['held_out_to_training'])} |")
    text = "\n".join(lines) + f"\n\n{100 * report['copies']:.1f} % of samples are a training feature."
    if "ratio" in report:
        text += f" A sample is {report['ratio']:.2f} times as far from the training features as a fresh feature is."
    return text


def _measured_otherwise(settings: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """The figures are those of the fit; who draws with other settings afterwards gets other ones."""
    then = {name: about.get(name, settings[name]) for name in ("mixing", "jitter")}
    if all(then[name] == settings[name] for name in then):
        return ""
    return f" Measured with mixing {then['mixing']} and jitter {then['jitter']}, not with the settings below."


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.3g}"


def public(value: Any) -> Any:
    """A fact; of a path on somebody's disk, the last part only."""
    if not isinstance(value, str | os.PathLike):
        return value
    name = os.fspath(value)
    return os.path.basename(os.path.normpath(name)) if os.path.isabs(os.path.expanduser(name)) else name
