"""Texts: features of tokens, addressed by tokens and padding."""

import pytest
import torch

from hf_reprot.cache import CacheError
from tests.cache.samples import build, cached_trainer
from tests.training.runs import make_trainer, training_logs
from tests.training.test_text import Texts, _student, _teacher


@pytest.mark.parametrize("own", [0, 37], ids=["the same tokens", "tokens of its own"])
def test_it_is_the_run_with_the_live_teacher(tmp_path, own):
    settings = {"layer_pairs": "stages", "max_steps": 8, "kd_weight": 1.0}
    vocabulary = {"vocabulary": own} if own else {}
    live = make_trainer(
        tmp_path / "a", model=_student(), teacher=_teacher(**vocabulary), data=Texts(own=own), **settings
    )
    live.train()
    cache = build(tmp_path / "c", _teacher(**vocabulary), Texts(own=own))
    assert cache.settings.columns[0].startswith("teacher_") == bool(own)
    cached = cached_trainer(tmp_path / "b", cache, model=_student(), data=Texts(own=own), **settings)
    cached.train()
    losses = [[entry["loss"] for entry in training_logs(trainer)] for trainer in (live, cached)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_another_padding_is_told_from_another_text(tmp_path):
    cache = build(tmp_path / "c", _teacher(), Texts(padding=0))
    with pytest.raises(CacheError, match=r"its text is, with another padding\. Pad to a fixed length"):
        cached_trainer(tmp_path / "a", cache, model=_student(), data=Texts(padding=3))
    others = Texts()
    others.tokens = torch.where(others.mask.bool(), (others.tokens + 1) % 50, others.tokens)
    with pytest.raises(CacheError, match="the text is not among the 32 of Texts that were cached"):
        cached_trainer(tmp_path / "a", cache, model=_student(), data=others)


def test_positions_of_texts_are_refused(tmp_path):
    with pytest.raises(ValueError, match="whose number depends on the padding: cache pooled features"):
        build(tmp_path, _teacher(), Texts(), positions=True)
