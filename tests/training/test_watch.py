import pytest
import torch

from hf_reprot.training.non_finite import NonFiniteWatch


def _step(watch: NonFiniteWatch, *dropped: float) -> None:
    watch.record(torch.tensor(dropped))
    watch.check()


def test_raises_on_the_step_that_reaches_the_limit_and_names_the_pair():
    watch = NonFiniteWatch(limit=3)
    watch.names = ["layer1=stage.1", "layer4=stage.4"]
    _step(watch, 0.0, 1.0)
    _step(watch, 0.0, 1.0)
    with pytest.raises(FloatingPointError, match=r"layer4=stage\.4"):
        _step(watch, 0.0, 1.0)


def test_a_good_step_in_between_starts_anew():
    watch = NonFiniteWatch(limit=2)
    for _ in range(5):
        _step(watch, 1.0)
        _step(watch, 0.0)


def test_nothing_to_watch():
    watch = NonFiniteWatch(limit=1)
    watch.record(None)
    watch.check()
