"""Pushes in the background: none that fails is forgotten, whenever it fails."""

import logging
from concurrent.futures import Future

from transformers.utils import PushInProgress

from hf_reprot.training.publishing import Publisher


def test_a_push_that_fails_after_it_was_looked_at_is_reported_the_next_time(caplog):
    early, late, fine = Future(), Future(), Future()
    running = PushInProgress([early, late, fine])
    early.set_exception(OSError("no room"))
    fine.set_result(None)
    with caplog.at_level(logging.WARNING):
        Publisher.report_failures(running)
        assert [r.getMessage() for r in caplog.records] == [
            "A push in the background failed: no room. The next one sends everything"
        ]
        assert running.jobs == [late]
        late.set_exception(OSError("too late"))
        assert running.is_done()
        Publisher.report_failures(running)
    assert "failed: too late" in caplog.records[-1].getMessage()
    assert running.jobs == []
