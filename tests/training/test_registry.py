"""A term of the loss is its own file and a line of the registry: nothing else knows it."""

from dataclasses import dataclass

import pytest
import torch
from transformers import HfArgumentParser

from hf_reprot import OTTransferConfig, OTTransferTrainer
from hf_reprot.config import OTTransferConfig as Config
from hf_reprot.training.terms import registry
from hf_reprot.training.terms.base import Batch, Term, TermOutput
from hf_reprot.utils.settings import setting
from tests.toy_models import Images, resnet, vit
from tests.training.runs import make_config, training_logs


@dataclass
class WithSmallLogits(OTTransferConfig):
    small_logits_weight: float = setting(0.0, "Weight of the logits' mean square.", term="mean square of the logits")


class SmallLogitsTerm(Term):
    """Keeps the student's logits small; the worked example of CONTRIBUTING.md, with a module and a state beside it."""

    name = "small_logits"
    needs = frozenset({"logits"})

    def __init__(self, context):
        super().__init__(context)
        self.scale = torch.nn.Linear(1, 1, bias=False)
        self.calls = torch.zeros(())

    def modules(self, widths, device):
        return {"small_logits": self.scale}

    def __call__(self, batch: Batch) -> TermOutput | None:
        if batch.logits is None:
            return None
        self.calls = self.calls + 1
        loss = batch.logits.float().square().mean() + (self.scale.weight - 3).square().sum()
        return TermOutput(self.config.small_logits_weight * loss, {"small_logits_loss": loss.detach()})

    def state_dict(self):
        return {"small_logits.calls": self.calls}

    def load_state_dict(self, state, device):
        self.calls = state["small_logits.calls"].to(device)


@pytest.fixture
def registered(monkeypatch):
    entry = registry.Registered(f"{__name__}:SmallLogitsTerm", lambda c: getattr(c, "small_logits_weight", 0) > 0)
    monkeypatch.setattr(registry, "REGISTRY", (*registry.REGISTRY, entry))


def _trainer(folder, **settings):
    base = make_config(folder, save_strategy="steps", save_steps=1, ot_weight=0.5, **settings)
    values = {name: getattr(base, name) for name in ("output_dir", "use_cpu", "max_steps", "optim", "ot_weight")}
    args = WithSmallLogits(
        **values,
        small_logits_weight=2.0,
        report_to="none",
        logging_steps=1,
        save_strategy="steps",
        save_steps=1,
        disable_tqdm=True,
        learning_rate=1e-2,
        max_grad_norm=0.0,
        per_device_train_batch_size=8,
    )
    return OTTransferTrainer(model=vit(), teacher_model=resnet(seed=1), args=args, train_dataset=Images())


def test_a_term_of_someone_else_is_trained_logged_saved_and_resumed(tmp_path, registered):
    trainer = _trainer(tmp_path, max_steps=2)
    start = trainer.auxiliary.parameters()[0].item()
    trainer.train()
    for entry in training_logs(trainer):
        terms = entry["task_loss"] + 0.5 * entry["ot_loss"] + 2 * entry["small_logits_loss"]
        assert entry["loss"] == pytest.approx(terms, rel=1e-4)
    assert abs(trainer.auxiliary.parameters()[0].item() - 3) < abs(start - 3)
    resumed = _trainer(tmp_path / "resumed", max_steps=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert resumed.transfer.find(SmallLogitsTerm).calls == 2
    assert torch.equal(resumed.auxiliary.parameters()[0], trainer.auxiliary.parameters()[0])


def test_its_weight_is_checked_as_every_other(tmp_path):
    with pytest.raises(ValueError, match="small_logits_weight must be a finite number at least 0, got -1"):
        WithSmallLogits(output_dir=str(tmp_path), report_to="none", small_logits_weight=-1.0)


def test_the_command_line_takes_it(tmp_path):
    line = ["--output_dir", str(tmp_path), "--report_to", "none", "--small_logits_weight", "0.5", "--bss_weight", "2"]
    (args,) = HfArgumentParser(WithSmallLogits).parse_args_into_dataclasses(line)
    assert (args.small_logits_weight, args.bss_weight) == (0.5, 2.0)


def test_every_registered_term_has_a_place_and_a_name_of_its_own():
    kinds = [entry.load() for entry in registry.REGISTRY]
    transports = [kind for kind in kinds if kind.name == "transport"]
    assert len({kind.name for kind in kinds}) == len(kinds) - len(transports) + 1
    assert all(kind.__doc__ for kind in kinds)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"layer_pairs": "auto"},
        {"ot_cost": "learned"},
        {"select_k": 0.5},
        {"ot_method": "gaussian"},
    ],
)
def test_one_transport_takes_part(tmp_path, settings):
    config = Config(output_dir=str(tmp_path), report_to="none", ot_weight=1.0, **settings)
    kinds = [entry.load() for entry in registry.REGISTRY if entry.when(config)]
    assert [kind.name for kind in kinds] == ["task", "transport"]
    config = Config(output_dir=str(tmp_path), report_to="none", ot_weight=0.0)
    assert [entry.load().name for entry in registry.REGISTRY if entry.when(config)] == ["task"]
