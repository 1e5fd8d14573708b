"""Students on the Hub: where everything came from, the card that says so, and the push."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names

if TYPE_CHECKING:
    from .card import rebuild_card
    from .errors import HubError
    from .push import push_folder
    from .record import RunRecord

__all__ = ["HubError", "RunRecord", "push_folder", "rebuild_card"]

__getattr__, __dir__ = lazy_names(
    __name__, {"HubError": "errors", "RunRecord": "record", "push_folder": "push", "rebuild_card": "card"}
)
