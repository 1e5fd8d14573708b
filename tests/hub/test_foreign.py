"""What others wrote is data: on a card it is text or a strict address, in a record it can be read again."""

import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard

from hf_reprot.hub.card import rebuild_card, render_card
from hf_reprot.hub.facts import DataFacts, ModelFacts, Speed, Start
from hf_reprot.hub.foreign import clean, escaped, repo_of, text_of, url_of
from hf_reprot.hub.licenses import License
from hf_reprot.hub.provenance import data_facts, folder_license
from hf_reprot.hub.record import Evaluation, LayerPlanFacts, PairFacts, RunRecord
from tests.hub.samples import COMMIT, record
from tests.hub_server.card import check_card

# One text that tries everything: HTML, links, pictures, headings, tables, fences, formulas, metadata, the terminal.
ATTACK = (
    "x\n\n# Heading\n\n<b>html</b> [a](https://evil.example/a) ![b](https://evil.example/b.png) https://evil.example/c "
    "www.evil.example me@evil.example | cell | ``` $$x$$ <https://evil.example/d> &lt;i&gt; \u202e \x1b[31m \ud800 \\"
    "\n---\nlicense: mit\n---\n> quote\n- list\n1. one\n==="
)


def texts_of(markdown: str) -> str:
    """A card without what its own code may hold: the metadata, fenced code, and code between backticks."""
    body = markdown.split("---\n", 2)[2]
    return re.sub(
        r"(?<!\\)`[^`\n]*(?<!\\)`", "", re.sub(r"```python\n.*?\n```|```bibtex\n.*?\n```", "", body, flags=re.DOTALL)
    )


def assert_harmless(card: str) -> None:
    body = texts_of(card)
    ours = re.sub(r"\\.", "", body)  # what is escaped says nothing
    assert not re.search(r"<(?!/?(?:details|summary)>)", ours)
    assert "evil.example" not in " ".join(re.findall(r"\]\(([^)]*)\)", ours))
    assert not re.search(r"(?i)https?://evil|www\.evil|@evil\.example", ours)
    assert "Heading" not in " ".join(line for line in card.splitlines() if line.startswith("#") and "x" not in line[:4])
    assert len(re.findall(r"^```", card, flags=re.MULTILINE)) % 2 == 0
    assert not re.search("[\u202e\x1b\ud800]", card)
    card.encode()
    assert [line for line in body.splitlines() if line.startswith(("===", "---"))] == []
    for line in body.splitlines():  # a cell that ends a row early makes another number of cells
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (3, 4, 5, 6, 7)


LICENCE = License("other", ATTACK, ATTACK)
DATA = DataFacts(ATTACK, 10, ATTACK, ATTACK, ATTACK, ATTACK, LICENCE)
SPEED = Speed(1.0, 2, ATTACK, ATTACK, ATTACK)
MODEL = ModelFacts(
    ATTACK, ATTACK, "transformers", 7, "hub", ATTACK, LICENCE, {ATTACK: 0.5}, SPEED, 0.5, [ATTACK], ATTACK
)
FIELDS = {
    "name": ATTACK,
    "student": MODEL,
    "start": Start("hub", ATTACK, ATTACK, LICENCE),
    "start in a folder": Start("folder", ATTACK, None, LICENCE),
    "repo_id": ATTACK,
    "task": ATTACK,
    "license": LICENCE,
    "license id": License(ATTACK),
    "input": ATTACK,
    "teachers": [MODEL, MODEL],
    "pairs": [PairFacts(ATTACK, ATTACK, 0, 1.0, 3, 4, ATTACK)],
    "layer_plans": [LayerPlanFacts([ATTACK], [ATTACK], [[1.0]], [[1.0]], 0, ATTACK)],
    "train_data": DATA,
    "evaluations": [Evaluation(DATA, {ATTACK: 0.5, "loss": 0.1})],
    "transfer": {ATTACK: ATTACK, "ot_weight": 1.0, "feature_loss": ATTACK, "feature_weight": 1.0},
    "training": {ATTACK: [ATTACK]},
    "seeds": {ATTACK: 1},
    "versions": {ATTACK: ATTACK},
    "hardware": ATTACK,
    "tags": [ATTACK],
    "language": [ATTACK],
}


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_of_the_card(field, tmp_path):
    sample = record(**{field.split(" in ")[0].split(" id")[0]: FIELDS[field]})
    assert_harmless(render_card(sample))
    sample.save(tmp_path)
    card = rebuild_card(tmp_path).read_text(encoding="utf-8")
    assert_harmless(card)
    data = ModelCard(card).data
    assert not any(
        "evil.example" in str(data.get(name)) for name in ("base_model", "license", "license_link", "datasets")
    )
    assert check_card(card).errors == []


def test_all_fields_at_once(tmp_path):
    record(**{name: value for name, value in FIELDS.items() if " " not in name}).save(tmp_path)
    assert_harmless(rebuild_card(tmp_path).read_text(encoding="utf-8"))


def test_a_card_writes_beside_the_weights_and_nowhere_else(tmp_path):
    folder = tmp_path / "student"
    folder.mkdir()
    plan = LayerPlanFacts(["a"], ["b"], [[1.0]], [[1.0]], 0, "images/layer_plan_1.png")
    record(layer_plans=[plan]).save(folder)
    text = (folder / "transfer.json").read_text()
    for place in ("../outside.png", str(tmp_path / "outside.png"), "images/../../outside.png", "README.md"):
        (folder / "transfer.json").write_text(text.replace("images/layer_plan_1.png", place))
        rebuild_card(folder)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["student"]
    content = json.loads(text)
    content["layer_plans"][0]["teacher_index"] = 5
    (folder / "transfer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="not the record of a run"):
        RunRecord.load(folder)


@pytest.mark.parametrize("value", [7, 1.5, True, [], [7], {"a": 1}, ["mit", 7], "", " ", None, "\ud800"], ids=repr)
def test_metadata_that_is_not_text_says_nothing(value, tmp_path):
    """Whatever a card or a data set says, the record can be written and read again."""
    for licence in (License.of("other", value, value), License.of(value, "name", "https://a.example")):
        sample = record(license=licence)
        sample.save(tmp_path)
        again = RunRecord.load(tmp_path)
        assert again.license is None or isinstance(again.license.title, str)
        check_card(render_card(again))
    changes = {"name": value, "hardware": value, "tags": [value], "language": [value], "seeds": {"seed": value}}
    changes |= {"train_data": DataFacts(value, value, value, value, value, value, value), "versions": {"a": value}}
    record(**changes).save(tmp_path)
    again = RunRecord.load(tmp_path)
    render_card(again)
    assert isinstance(again.name, str)


def test_the_card_of_a_teachers_folder(tmp_path):
    for said in (
        "license: other\nlicense_name: 7\nlicense_link: [1, 2]",
        "license: [7]",
        "license: {a: 1}",
        "license: 7",
    ):
        (tmp_path / "README.md").write_text(f"---\n{said}\n---\n")
        licence = folder_license(tmp_path)
        assert licence in (None, License("other"))
    (tmp_path / "README.md").write_text(
        "---\nlicense: other\nlicense_name: Terms\nlicense_link: https://a.example/terms\n---\n"
    )
    assert folder_license(tmp_path) == License("other", "Terms", "https://a.example/terms")


def test_a_data_set_that_names_itself_with_anything():
    class Info:
        dataset_name, config_name, license = 7, ["a"], {"b": 1}

    class Data:
        info, split, cache_files = Info(), None, []

        def __len__(self):
            return 3

    assert data_facts(Data()) == DataFacts("data made in memory", 3)


@pytest.mark.parametrize(
    ("url", "taken"),
    [
        ("https://huggingface.co/org/name/blob/main/LICENSE.md", True),
        ("https://example.org:8080/a?b=c#d", True),
        ("https://example.org", True),
        *(
            (url, False)
            for url in ("http://example.org", "javascript:alert(1)", "https://a.example/) [x](b", "LICENSE")
        ),
        *(
            (url, False)
            for url in ("https://user:pass@a.example/", "https://a.example/<b>", "https://a.example/ b", "//a")
        ),
        *((url, False) for url in ("https://a.example/\n# b", 7, None, ["https://a.example"], "https://-a/", "data:x")),
    ],
)
def test_addresses(url, taken):
    assert (url_of(url) is not None) == taken


def test_text_stays_readable():
    assert escaped("vit_base_patch16_224.augreg_in21k") == "vit_base_patch16_224.augreg_in21k"
    assert escaped("Müller's naïve 模型 (v1.0) 100 %") == "Müller's naïve 模型 (v1.0) 100 %"
    assert escaped("a * b_ <c> [d]") == r"a \* b\_ \<c\> \[d\]"
    assert clean("a\x1b[31mb\u202ec\ud800d\ne") == "a[31mbcd\ne"
    assert text_of("  a \n b  ") == "a b"
    assert len(text_of("a" * 1000)) == 200
    assert [repo_of(name) for name in ("org/name", "name", "../name", "a/b/c", "a b", "org/n..e")] == [
        *("org/name", "name", None, None, None, None)
    ]


def test_the_samples_own_links_are_there():
    card = render_card(record(license=License("other", "Terms", "https://a.example/terms")))
    assert "[Terms](https://a.example/terms)" in card
    assert f"](https://huggingface.co/timm/resnet50.a1_in1k/tree/{COMMIT})" in card
    assert yaml.safe_load(card.split("---\n")[1])["license_link"] == "https://a.example/terms"
