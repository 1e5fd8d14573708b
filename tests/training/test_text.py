"""Text encoders: attention masks, a teacher of the same tokens, and one with tokens of its own."""

import pytest
import torch
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from tests.training.runs import make_trainer, training_logs

VOCABULARY, LENGTH = 50, 12


def _student() -> DistilBertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 16}
    return DistilBertForSequenceClassification(DistilBertConfig(vocab_size=VOCABULARY, dropout=0.0, **sizes))


def _teacher(vocabulary: int = VOCABULARY) -> BertForSequenceClassification:
    torch.manual_seed(1)
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
    return BertForSequenceClassification(BertConfig(vocab_size=vocabulary, max_position_embeddings=32, **sizes))


class Texts(Dataset):
    """Random tokens; what lies behind the mask is `padding`."""

    def __init__(self, padding: int = 0, own: int = 0):
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(5, VOCABULARY, (32, LENGTH), generator=generator)
        lengths = torch.randint(3, LENGTH + 1, (32,), generator=generator)
        self.mask = (torch.arange(LENGTH) < lengths[:, None]).long()
        self.tokens = torch.where(self.mask.bool(), self.tokens, padding)
        self.labels = self.tokens[:, 0] % 2
        self.own = own

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        row = {"input_ids": self.tokens[i], "attention_mask": self.mask[i], "labels": self.labels[i]}
        if self.own:
            longer = (torch.cat([self.tokens[i], self.tokens[i]]) + VOCABULARY) % self.own
            row |= {"teacher_input_ids": longer, "teacher_attention_mask": torch.cat([self.mask[i], self.mask[i]])}
        return row


@pytest.mark.parametrize("pairs", ["last", "stages"])
@pytest.mark.parametrize("positions", ["pooled", "all"])
def test_padding_changes_nothing(tmp_path, pairs, positions):
    losses = []
    for padding in (0, 3):
        settings = {"layer_pairs": pairs, "ot_positions": positions, "per_device_train_batch_size": 16}
        trainer = make_trainer(
            tmp_path, model=_student(), teacher=_teacher(), data=Texts(padding), kd_weight=1.0, **settings
        )
        trainer.train()
        losses.append([entry["ot_loss"] for entry in training_logs(trainer)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][0] > 0


@pytest.mark.parametrize("vocabulary", [2 * VOCABULARY, VOCABULARY // 2])
def test_a_teacher_with_tokens_of_its_own(tmp_path, vocabulary):
    trainer = make_trainer(
        tmp_path,
        model=_student(),
        teacher=_teacher(vocabulary),
        data=Texts(own=vocabulary),
        eval_data=Texts(own=vocabulary),
        layer_pairs="stages",
        per_device_train_batch_size=16,
    )
    trainer.train()
    assert training_logs(trainer)[0]["ot_loss"] > 0
    assert trainer.evaluate()["eval_loss"] > 0
