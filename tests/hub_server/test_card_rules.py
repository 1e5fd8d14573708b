"""The rules for a card's metadata: what passes, what is refused, what is only warned about."""

import pytest

from tests.hub_server.card import check_card, front_matter

_GOOD = """---
language: [en, no]
license: apache-2.0
library_name: timm
pipeline_tag: image-classification
tags: [transport, "teacher:timm/resnet50.a1_in1k"]
datasets:
- ylecun/mnist
- beans
metrics: [accuracy]
base_model: timm/resnet18.a1_in1k
base_model_relation: finetune
model-index:
- name: student
  results:
  - task: {type: image-classification, name: Image Classification}
    dataset: {type: ylecun/mnist, name: MNIST, config: default, split: test}
    metrics:
    - {type: accuracy, value: 9.5e-1, name: Accuracy}
    source: {url: "https://example.org", name: example}
---

# Student
"""


def _with(old, new):
    assert old in _GOOD
    return _GOOD.replace(old, new)


def test_a_good_card_passes_without_a_word():
    verdict = check_card(_GOOD)
    assert (verdict.errors, verdict.warnings) == ([], [])


def test_yaml_is_read_as_the_hub_reads_it():
    data = front_matter(_GOOD)
    assert data["language"] == ["en", "no"]  # Norwegian, not False
    assert data["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.95
    assert front_matter("---\na: 1e-4\nb: true\nc: 1.5\nd: 3\n---") == {"a": 1e-4, "b": True, "c": 1.5, "d": 3}
    assert front_matter("# a title\n\n---\na: 1\n---\n") is None


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (_with("license: apache-2.0", "license: apache"), '"license" must be one of'),
        (_with("license: apache-2.0", "license: [mit, none-such]"), '"license[1]" must be one of'),
        (_with("license: apache-2.0", "license: 2"), '"license" must be a string or an array'),
        (_with("license: apache-2.0", "license: other\nlicense_link: terms.txt"), '"license_link"'),
        (_with("[en, no]", "English"), '"language" with value "English" is not valid'),
        (_with("[en, no]", "[en, false]"), '"language[1]" must be a string'),
        (_with("library_name: timm", "library_name: [timm]"), '"library_name" must be a string'),
        (_with("tags: [transport,", "tags: [3,"), '"tags[0]" must be a string'),
        (_with("metrics: [accuracy]", "metrics: accuracy"), '"metrics" must be an array'),
        (_with("- ylecun/mnist", "- /data/mnist"), '"datasets[0]" with value "/data/mnist" is not valid'),
        (_with("timm/resnet18.a1_in1k\n", "/tmp/student\n"), '"base_model" with value "/tmp/student" is not valid'),
        (
            _with("base_model_relation: finetune", "base_model_relation: distill"),
            '"base_model_relation" must be one of',
        ),
        (_with("- name: student", "- title: student"), '"model-index[0].name" is required'),
        (_with("task: {type: image-classification,", "task: {"), '"model-index[0].results[0].task.type" is required'),
        (_with("config: default", "config: 1"), '"model-index[0].results[0].dataset.config" must be a string'),
        (_with("name: MNIST, ", ""), '"model-index[0].results[0].dataset.name" is required'),
        (_with("value: 9.5e-1, ", ""), '"model-index[0].results[0].metrics[0].value" is required'),
        (_with("9.5e-1", ".nan"), '"model-index[0].results[0].metrics[0].value" must be a finite number'),
        (_with('url: "https://example.org", ', ""), '"model-index[0].results[0].source.url" is required'),
        ("---\nmodel-index: none\n---\n", '"model-index" must be an array'),
        ("---\nmodel-index: [none]\n---\n", '"model-index[0]" must be of type object'),
        ("---\nmodel-index: [{name: x}]\n---\n", '"model-index[0].results" is required'),
        ("---\nmodel-index: [{name: x, results: [{}]}]\n---\n", '"model-index[0].results[0].dataset" is required'),
        ("---\nlicense: mit\nlicense: mit\n---\n", "duplicated mapping key: license"),
        ("---\nlicense: [mit\n---\n", "Invalid YAML"),
        ("---\n- license\n---\n", "must be a YAML mapping"),
    ],
)
def test_a_bad_card_is_refused(card, message):
    errors = check_card(card).errors
    assert any(message in error for error in errors), errors


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("# only a title\n", "empty or missing yaml metadata"),
        ("---\n---\n# empty\n", "empty or missing yaml metadata"),
        (_with("pipeline_tag: image-classification", "pipeline_tag: image-distillation"), "not in the official list"),
    ],
)
def test_a_warning_does_not_refuse(card, message):
    verdict = check_card(card)
    assert verdict.errors == []
    assert message in verdict.warnings[0]


def test_data_set_cards_have_rules_of_their_own():
    assert check_card("---\nconfigs: [{config_name: default}]\nbase_model: 3\n---\n", "datasets").errors == []
    errors = check_card("---\nconfigs: [{data_files: x}]\nsize_categories: n<1K\n---\n", "datasets").errors
    assert errors == ['"size_categories" must be an array', '"configs[0].config_name" is required']
    assert check_card("---\ntask_categories: [juggling]\n---\n", "datasets").warnings
