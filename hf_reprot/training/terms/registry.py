"""Which terms there are, and when each takes part."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from ...config import OTTransferConfig
from .base import Term, TermContext


@dataclass(frozen=True)
class Registered:
    """A term by the place of its class: its module is imported only where the term takes part.

    Attributes:
        place: "package.module:Class".
        when: Whether it takes part, by the settings.
    """

    place: str
    when: Callable[[OTTransferConfig], bool]

    def load(self) -> type[Term]:
        """The class."""
        module, name = self.place.split(":")
        return getattr(importlib.import_module(module), name)


_TERMS, _EXPERIMENTAL = "hf_reprot.training.terms", "hf_reprot.experimental"


def _is_plain(config: OTTransferConfig) -> bool:
    return config.uses_transport and not (config.finds_layers or config.learns_cost or config.selects_neurons)


# In the order in which they are added up.
REGISTRY = (
    Registered(f"{_TERMS}.task:TaskTerm", lambda config: config.task_weight > 0),
    Registered(f"{_TERMS}.transport:TransportTerm", _is_plain),
    Registered(f"{_EXPERIMENTAL}.auto_layers:AutoLayersTransport", lambda c: c.uses_transport and c.finds_layers),
    Registered(f"{_EXPERIMENTAL}.inverse.learned_cost:LearnedCostTransport", lambda c: c.learns_cost),
    Registered(f"{_EXPERIMENTAL}.topk.training:SelectiveTransport", lambda c: c.selects_neurons),
    Registered(f"{_TERMS}.feature:FeatureTerm", lambda config: config.uses_feature_loss),
    Registered(f"{_TERMS}.delta:DeltaTerm", lambda config: config.delta_weight > 0),
    Registered(f"{_TERMS}.shrinkage:ShrinkageTerm", lambda config: config.bss_weight > 0),
    Registered(f"{_TERMS}.logits:LogitTerm", lambda config: config.kd_weight > 0),
    Registered(f"{_TERMS}.l2sp:L2SPTerm", lambda config: config.l2sp_weight > 0),
)


def build_terms(context: TermContext) -> list[Term]:
    """The terms that the settings ask for, in the order of the registry."""
    return [entry.load()(context) for entry in REGISTRY if entry.when(context.config)]
