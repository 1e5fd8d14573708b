import pytest
import torch

from hf_reprot.training.log_window import Meter


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def test_means_over_the_window_and_sums_for_counts():
    meter = Meter()
    for value in (1.0, 2.0, 6.0):
        meter.add({"ot_loss": torch.tensor(value), "ot_dropped": torch.tensor(1.0)})
    assert meter.pop(_alone) == pytest.approx({"ot_loss": 3.0, "ot_dropped": 3.0})
    assert meter.pop(_alone) == {}


def test_a_name_that_comes_late_is_averaged_over_its_own_steps():
    meter = Meter()
    meter.add({"a": torch.tensor(1.0)})
    meter.add({"a": torch.tensor(3.0), "b": torch.tensor(5.0)})
    assert meter.pop(_alone) == pytest.approx({"a": 2.0, "b": 5.0})


def test_processes_are_averaged():
    meter = Meter()
    meter.add({"a": torch.tensor(1.0), "b": torch.tensor(10.0)})
    other = torch.tensor([3.0, 30.0])
    assert meter.pop(lambda mine: torch.cat([mine, other])) == pytest.approx({"a": 2.0, "b": 20.0})
