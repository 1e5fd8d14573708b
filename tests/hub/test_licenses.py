"""Licences: how the Hub writes them, and what is said about them."""

import pytest

from hf_reprot.hub.licenses import HUB_LICENSES, License, license_warnings
from tests.hub_server.vocabulary import LICENSES


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Apache 2.0", License("apache-2.0")),
        ("apache-2.0", License("apache-2.0")),
        ("MIT", License("mit")),
        (["cc-by-4.0", "mit"], License("cc-by-4.0")),
        ("My own terms", License("other", "My own terms")),
        ("unknown", None),
        ("", None),
        ([], None),
        (None, None),
        (3, None),
    ],
)
def test_what_a_licence_is_called(text, expected):
    assert License.of(text) == expected


def test_the_hub_knows_every_id():
    assert HUB_LICENSES <= LICENSES


def test_another_licence_needs_a_name_and_keeps_an_address():
    terms = License.of("other", "Ada's Terms", "https://example.org/terms")
    assert terms.metadata() == {
        "license": "other",
        "license_name": "ada-s-terms",
        "license_link": "https://example.org/terms",
    }
    assert License.of("other", None, "LICENSE.txt").metadata() == {"license": "other", "license_name": "see-the-origin"}
    assert License("mit").metadata() == {"license": "mit"}


@pytest.mark.parametrize(
    ("license", "standing"),
    [
        (License("mit"), "open"),
        (License("cc-by-nc-4.0"), "non-commercial"),
        (License("apple-amlr"), "non-commercial"),
        (License("other", "FAIR Noncommercial Research License"), "non-commercial"),
        (License("other", "Ada's Terms"), "conditions"),
        (License("llama3.1"), "conditions"),
        (License("ncsa"), "open"),
    ],
)
def test_what_a_licence_allows(license, standing):
    assert license.standing == standing


def test_missing_and_forbidding_licences_are_said():
    assert license_warnings(License("mit"), {"the teacher t": License("mit")}, inherited=True) == []
    missing = license_warnings(None, {"the teacher t": None}, inherited=True)
    assert missing[0].startswith("The licence of the weights that the student started from is not known")
    assert missing[1] == "The licence of the teacher t is not known."
    assert "no licence yet" in license_warnings(None, {}, inherited=False)[0]
    assert (
        "forbids commercial use" in license_warnings(License("mit"), {"d": License("cc-by-nc-4.0")}, inherited=False)[0]
    )
    assert "conditions of its own" in license_warnings(License("gemma"), {}, inherited=True)[0]
