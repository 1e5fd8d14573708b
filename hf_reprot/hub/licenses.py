"""Licences as the Hub names them: which ids it knows, and which forbid commercial use."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from .foreign import text_of, url_of

# Ids that the Hub's card validation takes (hf.co/docs/hub/repositories-licenses); any other name goes under "other".
HUB_LICENSES = frozenset(
    """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0
    etalab-2.0 eupl-1.1 gemma gfdl gpl gpl-2.0 gpl-3.0 intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2
    llama3 llama3.1 llama3.2 llama3.3 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail openrail++
    osl-3.0 pddl postgresql unknown unlicense wtfpl zlib
    """.split()  # noqa: SIM905
)

# Licences for research only, whose ids do not say "nc".
_RESEARCH_ONLY = frozenset({"apple-amlr", "deepfloyd-if-license", "intel-research"})
# Licences with conditions of their own that a reader has to look up.
_CONDITIONS = re.compile(r"rail|llama|gemma|^other$|^cc$|c-uda|apple-ascl")
_SPELLINGS = {
    "apache": "apache-2.0",
    "apache2": "apache-2.0",
    "apache-2": "apache-2.0",
    "apache-license-2.0": "apache-2.0",
}
_NON_COMMERCIAL = re.compile(r"(^|[-\s])nc([-\s]|$)|non-?\s?commercial|research[\s-](only|use)")


@dataclass
class License:
    """A licence: `id` as on the Hub; `name` and `link` where the id is "other"."""

    id: str
    name: str | None = None
    link: str | None = None

    @classmethod
    def of(cls, text: Any, name: Any = None, link: Any = None) -> License | None:
        """A licence from what a card, a data set or a config calls it; None where it says nothing.

        Args:
            text: An id, a name, or the terms themselves (of which only the first words are kept).
            name, link: A card's `license_name` and `license_link`.

        What is not text, and an address that is not of a strict form, says nothing.
        """
        if isinstance(text, list):
            text = text[0] if text else None
        text, name, link = text_of(text), text_of(name), url_of(link)
        if text is None or text.lower() in ("unknown", "none", "n/a"):
            return None
        known = re.sub(r"[\s_]+", "-", text.lower())
        known = _SPELLINGS.get(known, known)
        if known in HUB_LICENSES and known != "other":
            return cls(known)
        if known == "other":
            return cls("other", _shorten(name), link)
        return cls("other", _shorten(name or text), link)

    @property
    def title(self) -> str:
        """How a text names it."""
        return self.name or "a licence of its own" if self.id == "other" else self.id

    @property
    def standing(self) -> str:
        """ "open", "non-commercial", or "conditions" where only the licence itself can tell."""
        words = f"{self.id} {self.name or ''}".lower()
        if self.id in _RESEARCH_ONLY or _NON_COMMERCIAL.search(words):
            return "non-commercial"
        return "conditions" if _CONDITIONS.search(self.id) else "open"

    def metadata(self) -> dict[str, str]:
        """The fields of a card's metadata. The Hub wants a name beside "other"."""
        if self.id in HUB_LICENSES:
            return {"license": self.id}
        slug = re.sub(r"[^a-z0-9.]+", "-", (self.name or "").lower()).strip("-") or "see-the-origin"
        # The Hub takes an address; a name of a file means a file of the repository that the licence came from.
        link = url_of(self.link)
        return {"license": "other", "license_name": slug} | ({"license_link": link} if link else {})


def license_warnings(student: License | None, others: dict[str, License | None], *, inherited: bool) -> list[str]:
    """Sentences about licences that are missing, forbid commercial use or have conditions of their own.

    Args:
        student: The licence that the card gives the student.
        others: Licences of the teachers and the data, by what to call them ("the teacher org/name").
        inherited: Whether the student's weights started from someone's, whose licence binds it.
    """
    origin = "the weights that the student started from" if inherited else "the student"
    found = []
    if student is None and inherited:
        found.append(
            "The licence of the weights that the student started from is not known: ask their authors before you "
            "share or use it."
        )
    elif student is None:
        found.append("The student has no licence yet: without one, nobody else may use it.")
    for title, licence in {origin: student, **others}.items():
        if licence is None and title != origin:
            found.append(f"The licence of {title} is not known.")
        elif licence is not None and licence.standing == "non-commercial":
            found.append(f"The licence of {title} ({licence.title}) forbids commercial use.")
        elif licence is not None and licence.standing == "conditions":
            found.append(f"The licence of {title} ({licence.title}) has conditions of its own: read it before use.")
    return found


def _shorten(text: str | None, length: int = 60) -> str | None:
    if text is None or len(text) <= length:
        return text
    return text[: length - 3].rsplit(" ", 1)[0] + "..."
