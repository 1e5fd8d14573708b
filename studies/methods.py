"""The methods of a study: settings of the trainer, and the weight that is chosen for each on validation images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Of a method's own weight: what is tried first, and then, while the best is the last on its side, two more, for all.
FACTORS = (0.2, 1.0, 5.0)
FURTHER = (0.04, 0.008, 25.0, 125.0)


@dataclass(frozen=True)
class Method:
    """One way to train a student.

    Attributes:
        weight: Name of the setting that is tuned, and the value from the paper or from first tries around which it is.
        settings: Further settings of `OTTransferConfig`.
        beside: A method by transport that runs beside it, at the weight that was chosen for that one alone.
        maps: It looks at positions: a remembered teacher has none, and the live one is used.
        blocks: It compares every block of two `ConvNet`s of one depth, beside the last layer.
        label_free: Trained on all images of the pool without a label; then a linear head on the labelled ones.
        rolled: Each image gets the teacher's answer to another one: its scale and its spectrum, and no information.
    """

    weight: tuple[str, float] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    beside: str | None = None
    maps: bool = False
    blocks: bool = False
    label_free: bool = False
    rolled: bool = False


def _transport(weight: float = 10.0, *, label_free: bool = False, **settings: Any) -> Method:
    settings = {"ot_method": "sinkhorn"} | settings | ({"task_weight": 0.0} if label_free else {})
    return Method(("ot_weight", weight), settings, label_free=label_free)


def _feature(name: str, weight: float, *, maps: bool = False) -> Method:
    return Method(("feature_weight", weight), {"ot_weight": 0.0, "feature_loss": name}, maps=maps)


def _label_free_feature(name: str, weight: float) -> Method:
    settings = {"task_weight": 0.0, "ot_weight": 0.0, "feature_loss": name}
    return Method(("feature_weight", weight), settings, label_free=True)


_ALONE = {"ot_weight": 0.0}
_LOGITS = {"kd_temperature": 4.0}
_GAUSSIAN = {"ot_method": "gaussian", "plan_momentum": 0.9}

METHODS: dict[str, Method] = {
    "student alone": Method(None, _ALONE),
    "student alone, its rate tuned": Method(("learning_rate", 3e-3), _ALONE),
    "logits": Method(("kd_weight", 5.0), _ALONE | _LOGITS),
    "logits, DKD": Method(("kd_weight", 1.0), _ALONE | _LOGITS | {"kd_method": "dkd"}),
    # the baselines on features
    "FitNet": _feature("fitnet", 50.0),
    "attention transfer": _feature("attention", 200.0, maps=True),
    "neuron selectivity": _feature("nst", 20.0, maps=True),
    "relational": _feature("rkd", 5.0),
    "similarity": _feature("similarity", 15000.0),
    "CKA": _feature("cka", 10.0),
    "contrastive": _feature("crd", 4.0),
    "RSD": _feature("rsd", 25.0),
    "Gaussian W2": _feature("wkd", 1.0, maps=True),
    # regularisers of fine-tuning
    "L2": Method(("weight_decay", 0.01), _ALONE),
    "L2-SP": Method(("l2sp_weight", 0.1), _ALONE),
    "DELTA": Method(("delta_weight", 0.01), _ALONE, maps=True),
    "BSS": Method(("bss_weight", 1e-3), _ALONE),
    # transport and its controls
    "transport": _transport(),
    "transport and logits": Method(("kd_weight", 0.5), _LOGITS, beside="transport"),
    "random pairing": _transport(ot_method="random"),
    "identity pairing": _transport(ot_method="identity"),
    "independent": _transport(ot_method="independent"),
    "Gaussian transport": _transport(50.0, **_GAUSSIAN),
    "rolled teacher": Method(("ot_weight", 50.0), _GAUSSIAN, rolled=True),
    "transport, then a linear head": _transport(label_free=True),
    "transport, running moments, then a linear head": _transport(label_free=True, plan_momentum=0.9),
    "random pairing, then a linear head": _transport(label_free=True, ot_method="random"),
    "FitNet, then a linear head": Method(
        ("feature_weight", 50.0), {"task_weight": 0.0, "ot_weight": 0.0, "feature_loss": "fitnet"}, label_free=True
    ),
    "relational, then a linear head": _label_free_feature("rkd", 25.0),
    "RSD, then a linear head": _label_free_feature("rsd", 25.0),
    "Gaussian transport, then a linear head": Method(
        ("ot_weight", 50.0), {"task_weight": 0.0} | _GAUSSIAN, label_free=True
    ),
    "rolled teacher, then a linear head": Method(
        ("ot_weight", 50.0), {"task_weight": 0.0} | _GAUSSIAN, label_free=True, rolled=True
    ),
    # the method's own settings
    "exact": _transport(ot_method="exact"),
    "proximal": _transport(ot_method="proximal"),
    "epsilon 0.001": _transport(ot_relative_epsilon=0.001),
    "epsilon 0.003": _transport(ot_relative_epsilon=0.003),
    "epsilon 0.03": _transport(ot_relative_epsilon=0.03),
    "epsilon 0.1": _transport(ot_relative_epsilon=0.1),
    "epsilon 0.1, debiased": _transport(ot_relative_epsilon=0.1, ot_debiased=True),
    "debiased": _transport(ot_debiased=True),
    "raw values": _transport(ot_standardize=False),
    "running moments 0.9": _transport(plan_momentum=0.9),
    "running moments 0.99": _transport(plan_momentum=0.99),
    # what else might make the optimal coupling pay more
    "every layer": Method(("ot_weight", 10.0), {"ot_method": "sinkhorn"}, blocks=True),
    "every layer, random pairing": Method(("ot_weight", 10.0), {"ot_method": "random"}, blocks=True),
    "one plan, kept": _transport(ot_cost="learned"),
    "half of the neurons": _transport(select_k=0.5, select_by="transport"),
    "every position": _transport(ot_positions="all"),
    "every position, random pairing": _transport(ot_positions="all", ot_method="random"),
    "every position and logits": Method(("kd_weight", 0.5), _LOGITS | {"ot_positions": "all"}, beside="every position"),
    "FitNet, every position": Method(
        ("feature_weight", 50.0), {"ot_weight": 0.0, "feature_loss": "fitnet", "ot_positions": "all"}
    ),
    "every position, then a linear head": _transport(label_free=True, ot_positions="all"),
    "every position, random pairing, then a linear head": _transport(
        label_free=True, ot_positions="all", ot_method="random"
    ),
    "FitNet, every position, then a linear head": Method(
        ("feature_weight", 50.0),
        {"task_weight": 0.0, "ot_weight": 0.0, "feature_loss": "fitnet", "ot_positions": "all"},
        label_free=True,
    ),
    "Gaussian transport, every position, then a linear head": Method(
        ("ot_weight", 50.0), {"task_weight": 0.0, "ot_positions": "all"} | _GAUSSIAN, label_free=True
    ),
}
