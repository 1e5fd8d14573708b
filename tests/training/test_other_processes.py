"""Resuming where the number of processes, or what they share, is another one than before."""

import shutil

import pytest
import torch

from hf_reprot.training.checkpoint_files import PROCESSES, STATE_FILE, load_transfer_state, save_transfer_state
from hf_reprot.training.terms.transport import TransportTerm
from tests.training.runs import make_trainer, training_logs

CARRIED = {"plan_momentum": 0.9, "max_steps": 3}


def samples(trainer) -> list[float]:
    return [running.moments.count.item() for running in trainer.transfer.find(TransportTerm).running]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    make_trainer(folder, **CARRIED, save_strategy="steps", save_steps=2).train()
    return folder / "checkpoint-2"


def test_a_checkpoint_of_several_processes_with_moments_of_their_own(folder, tmp_path, caplog):
    two = shutil.copytree(folder, tmp_path / "checkpoint-2")
    state = load_transfer_state(two)
    (two / STATE_FILE).unlink()
    shutil.move(two / "rng_state.pth", two / "rng_state_0.pth")
    shutil.copy(two / "rng_state_0.pth", two / "rng_state_1.pth")
    for rank in range(2):
        save_transfer_state(two, state | {PROCESSES: torch.tensor(2)}, rank)
    trainer = make_trainer(tmp_path / "out", **CARRIED, ot_global_batch=False)
    trainer.train(resume_from_checkpoint=str(two))
    assert (
        "holds moments of each of 2 process(es), and this run carries moments of each of 1 process(es)" in caplog.text
    )
    assert samples(trainer) == [8]  # the batch of the one step that was left
    assert len(training_logs(trainer)) == 3


def test_the_same_processes_go_on_with_their_moments(folder, tmp_path, caplog):
    for shares in (True, False):  # with one process, the same thing
        trainer = make_trainer(tmp_path, **CARRIED, ot_global_batch=shares)
        trainer.train(resume_from_checkpoint=str(folder))
        assert samples(trainer) == [pytest.approx(8 * (1 + 0.9 + 0.81))]
    assert "start anew" not in caplog.text


def test_what_processes_share_does_not_depend_on_their_number(tmp_path, caplog):
    state = {"running.0.count": torch.tensor(5.0), "window.loss": torch.tensor(1.0), PROCESSES: torch.tensor(4)}
    save_transfer_state(tmp_path, state)
    assert load_transfer_state(tmp_path, None, 2) == state
    assert not caplog.text
    for rank in (0, 1):  # what rests on other samples is left out, what is the same for all is not
        assert set(load_transfer_state(tmp_path, rank, 4)) == {"window.loss", PROCESSES}
    assert caplog.text.count("moments of all samples, and this run carries moments of each of 4 process(es)") == 1


def test_more_processes_than_before_find_what_all_share(tmp_path, caplog):
    state = {"running.0.count": torch.tensor(5.0), "auxiliary.w": torch.tensor(2.0), PROCESSES: torch.tensor(2)}
    for rank in range(2):
        save_transfer_state(tmp_path, state, rank)
    assert set(load_transfer_state(tmp_path, 1, 2)) == set(state)
    for rank, processes in ((0, 3), (1, 3), (2, 3), (None, 2)):
        assert set(load_transfer_state(tmp_path, rank, processes)) == {"auxiliary.w", PROCESSES}, rank
    assert caplog.text.count("start anew") == 2
