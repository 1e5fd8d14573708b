"""Results in `.eval_results/`: what the Hub's client reads back, and what a push takes along."""

import copy

import pytest
import yaml

from hf_reprot.hub.card import write_card
from hf_reprot.hub.contents import student_contents
from hf_reprot.hub.eval_results import FOLDER, eval_result_files, write_eval_results
from hf_reprot.hub.facts import DataFacts
from hf_reprot.hub.record import Evaluation
from tests.hub.folders import student_folder
from tests.hub.samples import COMMIT, record

MNIST = f"{FOLDER}/ylecun--mnist.yaml"


def test_the_client_reads_what_was_written(tmp_path):
    hub = pytest.importorskip("huggingface_hub._eval_results")
    write_card(record(repo_id="ada/digits"), tmp_path)
    (entry,) = hub.parse_eval_result_entries(yaml.safe_load((tmp_path / MNIST).read_text()))
    assert (entry.dataset_id, entry.task_id, entry.dataset_revision) == ("ylecun/mnist", "mnist", COMMIT)
    assert entry.value == 0.9234
    assert entry.source_url == "https://huggingface.co/ada/digits"
    assert entry.notes == "accuracy, split test"


def test_only_data_of_the_hub_and_one_result_for_each():
    local = Evaluation(DataFacts("my photos", 10), {"accuracy": 0.5})
    sample = record()
    other = copy.deepcopy(sample.evaluations[0])
    other.data.config, other.metrics = "letters", {"loss": 1.0, "f1": 0.25, "recall": 0.5}
    sample.evaluations = [*sample.evaluations * 2, local, other]
    files = eval_result_files(sample)
    assert list(files) == [MNIST]
    assert [(e["dataset"]["task_id"], e["value"]) for e in files[MNIST]] == [("mnist", 0.9234), ("letters", 0.25)]
    sample.evaluations = [Evaluation(sample.evaluations[0].data, {"loss": 1.0})]
    assert eval_result_files(sample) == {}


def test_files_of_an_earlier_run_go_and_those_of_others_stay(tmp_path):
    write_eval_results(record(), tmp_path)
    (tmp_path / FOLDER / "theirs.yaml").write_text("- dataset: {id: a/b}\n  value: 1\n")
    write_eval_results(record(evaluations=[]), tmp_path)
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["theirs.yaml"]


def test_a_push_takes_them_along_and_no_other_hidden_file(tmp_path):
    folder = student_folder(tmp_path)
    write_eval_results(record(), folder)
    (folder / ".secret").mkdir()
    (folder / ".secret" / "a.yaml").write_text("x: 1\n")
    (folder / FOLDER / ".hidden.yaml").write_text("x: 1\n")
    sent = {content.path_in_repo for content in student_contents(folder)}
    assert MNIST in sent
    assert not {name for name in sent if name.startswith(".") and name != MNIST}
