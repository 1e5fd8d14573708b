"""The card: what it says, what it says it from, and whether the Hub takes it."""

import pytest
from huggingface_hub import ModelCard

from hf_reprot.hub.card import COMPARISON, CURVES, rebuild_card, render_card, write_card
from hf_reprot.hub.facts import DataFacts, ModelFacts, Start
from hf_reprot.hub.licenses import License
from hf_reprot.hub.paper import _paper
from hf_reprot.hub.record import RECORD_FILE, Evaluation, Job, RunRecord
from hf_reprot.hub.sections import fact_rows
from hf_reprot.models.head import HeadFit
from tests.hub.samples import COMMIT, record
from tests.hub_server.card import check_card, front_matter

HUB_START = Start("hub", "google/vit-base-patch16-224", COMMIT, License("apache-2.0"))


def _variants():
    peft = ModelFacts("s", "ViTForImageClassification", "peft", 1000)
    transformers = ModelFacts("s", "ViTForImageClassification", "transformers", 1000)
    text = {"student": transformers, "task": "text-classification", "language": ["en"]}
    local = DataFacts("my photos", None)
    return {
        "as it is": {},
        "from the hub": {"start": HUB_START, "license": License("apache-2.0"), "student": transformers},
        "adapter": {"start": HUB_START, "student": peft},
        "text": text,
        "no teacher": {"teachers": [], "pairs": [], "job": "no-teacher"},
        "two teachers": {"teachers": record().teachers * 2},
        "never trained": {"history": [], "evaluations": [], "step": None, "seconds": None},
        "local data": {"train_data": local, "evaluations": [Evaluation(local, {"accuracy": 1})]},
        "nothing known": {"task": None, "student": ModelFacts("s", "Net", "torch", 7), "train_data": None},
        "other licence": {"license": License("other", "My | terms", "LICENSE")},
    }


@pytest.mark.parametrize("changes", _variants().values(), ids=_variants())
def test_the_hub_takes_every_card(changes):
    verdict = check_card(render_card(record(**changes)))
    assert (verdict.errors, verdict.warnings) == ([], [])


@pytest.mark.parametrize("changes", _variants().values(), ids=_variants())
def test_the_client_reads_back_what_was_written(tmp_path, changes):
    (tmp_path / "README.md").write_text(render_card(record(**changes)))
    data = ModelCard.load(tmp_path / "README.md").data
    results = data.eval_results or []
    sample = record(**changes)
    if sample.task is not None:
        expected = [(n, v) for e in sample.evaluations for n, v in e.metrics.items()]
        assert [(result.metric_type, result.metric_value) for result in results] == expected


def test_metadata_of_a_student_from_scratch():
    data = front_matter(render_card(record()))
    assert "base_model" not in data
    assert "license" not in data
    assert data["library_name"] == "timm"
    assert data["pipeline_tag"] == "image-classification"
    assert data["datasets"] == ["ylecun/mnist"]
    assert {"hf_reprot", "optimal-transport", "knowledge-distillation", "timm", "transformers"} <= set(data["tags"])
    assert "teacher:timm/resnet50.a1_in1k" in data["tags"]
    dataset = data["model-index"][0]["results"][0]["dataset"]
    assert dataset == {
        "name": "ylecun/mnist",
        "type": "ylecun/mnist",
        "config": "mnist",
        "split": "test",
        "revision": COMMIT,
    }


def test_the_origin_of_the_weights_is_the_base_model_and_the_teacher_is_not():
    data = front_matter(render_card(record(start=HUB_START, license=License("apache-2.0"))))
    assert (data["base_model"], data["base_model_relation"]) == ("google/vit-base-patch16-224", "finetune")
    assert data["license"] == "apache-2.0"
    folder = record(start=Start("folder", "my-student"))
    assert "base_model" not in front_matter(render_card(folder))
    adapter = record(start=HUB_START, student=ModelFacts("s", "ViT", "peft", 1))
    assert front_matter(render_card(adapter))["base_model_relation"] == "adapter"


def test_the_part_of_a_head_that_is_new_is_said():
    for new, said in (
        (None, ")\n"),
        (0, ")\n"),
        (3, "; 3 of the head's 10 classes from new random weights\n"),
        (10, "; the head from new random weights\n"),
    ):
        start = Start("hub", "google/vit", COMMIT, None, new)
        line = next(row for row in fact_rows(record(start=start, classes=10)) if row[0] == "Student's weights started")
        assert f"{line[1]}\n".endswith(said)
        assert line[1] in render_card(record(start=start, classes=10))


def test_the_text_names_everything():
    text = render_card(record())
    for fact in (
        f"https://huggingface.co/timm/resnet50.a1_in1k/tree/{COMMIT}",
        f"https://huggingface.co/datasets/ylecun/mnist/tree/{COMMIT}",
        "`timm_model.layer4` | 512 | `layer4` | 2048 | 0.75",
        "| Teacher | resnet50 |",
        "25.6 million | 42 a second",
        "| `ot_method` | `sinkhorn` |",
        "| `ot_weight` | `0.5` |",
        "| `seed` | `42` |",
        "| torch | 2.14.1 |",
        "0.9234 | 0.9510",
        "new random weights",
        "distillation",
        CURVES,
        COMPARISON,
        "images/transport_plan_1.png",
        "batches of 16, inputs of 3 x 224 x 224, float32",
        _paper["citation"],
        _paper["url"],
        "## Limits",
    ):
        assert fact in text, fact


def test_what_a_reader_needs_comes_first_and_defaults_are_folded():
    text = render_card(record())
    order = (
        "## Results",
        "## How to load",
        "## Teacher and student",
        "### Loss and settings",
        "<details>",
        "</details>",
    )
    places = [text.index(heading) for heading in order]
    assert places == sorted(places)
    shown, folded = text.split("<details>")
    for changed in ("| `ot_weight` | `0.5` |", "| `plan_momentum` | `0.9` |"):
        assert changed in shown
        assert changed not in folded
    for default in ("| `kd_weight` | `0` |", "| `ot_cost` | `sqeuclidean` |", "| `seed` | `42` |", "| torch |"):
        assert default in folded
        assert default not in shown


@pytest.mark.parametrize(
    ("job", "tag", "words"),
    [
        (Job.DISTILLATION, "knowledge-distillation", "A distilled student inherits"),
        (Job.TRANSFER, "transfer-learning", "A student inherits"),
        (Job.FINE_TUNING, "transfer-learning", "its representation was pulled toward"),
        (Job.REPRESENTATION, "representation-learning", "It learnt the representation of"),
        (Job.REPRESENTATION_AND_HEAD, "representation-learning", "A head was then fitted to 60 labelled samples."),
    ],
)
def test_tags_and_words_are_those_of_the_job(job, tag, words):
    fit = HeadFit(60, 1.0, 0.8) if job == Job.REPRESENTATION_AND_HEAD else None
    text = render_card(record(job=job, head=fit))
    jobs = {"knowledge-distillation", "transfer-learning", "representation-learning"}
    assert jobs & set(front_matter(text)["tags"]) == {tag}
    assert words in text
    assert ("distilled" in text) == (job == Job.DISTILLATION)


def test_licences_that_forbid_or_are_missing_stand_at_the_top_and_in_the_log(tmp_path, caplog):
    sample = record()
    sample.teachers[0].license = License("cc-by-nc-4.0")
    sample.train_data.license = sample.evaluations[0].data.license = None
    write_card(sample, tmp_path)
    top = (tmp_path / "README.md").read_text().split("## Results")[0]
    for sentence in (
        "The student has no licence yet",
        "The licence of the teacher timm/resnet50.a1_in1k (cc-by-nc-4.0) forbids commercial use.",
        "The licence of the data ylecun/mnist is not known.",
    ):
        assert sentence in top
    assert "forbids commercial use" in caplog.text


def test_nothing_from_outside_becomes_markup():
    sample = record(name="<script>x</script> [a](b) `c`", hardware="a | b")
    sample.pairs[0].student = "a`b|c"
    text = render_card(sample).split("\n---\n", 1)[1]
    assert "<script>" not in text.replace("\\<script\\>", "")
    assert r"\[a\](b)" in text
    assert r"a \| b" in text
    assert r"`a'b\|c`" in text


def test_pictures_that_are_not_there_are_not_shown(tmp_path):
    write_card(record(), tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert CURVES in text
    assert COMPARISON in text
    assert "transport_plan" not in text
    assert (tmp_path / CURVES).read_bytes().startswith(b"\x89PNG")


def test_a_card_is_rebuilt_from_its_folder(tmp_path):
    record().save(tmp_path)
    first = rebuild_card(tmp_path).read_bytes()
    assert b"your-name/digits-student" in first
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "images").iterdir()}
    assert rebuild_card(tmp_path).read_bytes() == first
    assert {path.name: path.read_bytes() for path in (tmp_path / "images").iterdir()} == pictures
    again = rebuild_card(tmp_path, repo_id="ada/digits").read_text()
    assert "hf-hub:ada/digits" in again
    assert "your-name" not in again
    assert RunRecord.load(tmp_path).repo_id == "ada/digits"
    with pytest.raises(FileNotFoundError, match=RECORD_FILE):
        rebuild_card(tmp_path / "images")


def test_a_run_without_transport_does_not_speak_of_it():
    other = {"ot_weight": 0.0, "feature_loss": "fitnet", "feature_weight": 0.3, "kd_weight": 1.0, "kd_method": "dkd"}
    sample = record()
    text = render_card(record(transfer=sample.transfer | other | {"delta_weight": 0.1, "bss_weight": 0.01, "bss_k": 2}))
    assert "feature_weight * fitnet (weighted mean over the matched layers)" in text
    assert "KL of the logits at kd_temperature, label and other classes apart" in text
    assert "delta_weight * squared distance" in text
    assert "bss_weight * squares of the bss_k smallest singular values" in text
    assert "| `feature_loss` | `fitnet` |" in text
    for words in ("ot_weight * transport", "| `ot_method` |", "A low transport cost", "by [optimal transport"):
        assert words in render_card(sample), words
        assert words not in text, words
