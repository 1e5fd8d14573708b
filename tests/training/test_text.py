"""Text encoders: attention masks, a teacher of the same tokens, and one with tokens of its own."""

import datasets
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from hf_reprot.data.tokens import TeacherTokenCollator
from hf_reprot.models.teacher import Teacher
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


def _tokenizer(pad: int) -> PreTrainedTokenizerFast:
    words = {f"w{i}": i for i in range(VOCABULARY)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token=f"w{pad}")), pad_token=f"w{pad}", unk_token=f"w{pad}"
    )


def _rows(mask: bool) -> list[dict]:
    draw = torch.Generator().manual_seed(0)
    rows = []
    for i in range(16):
        own, longer = (
            torch.randint(5, VOCABULARY, (int(size),), generator=draw).tolist() for size in (3 + i % 4, 9 - i % 3)
        )
        row = {"input_ids": own, "attention_mask": [1] * len(own), "labels": i % 2, "teacher_input_ids": longer}
        row["teacher_token_type_ids"] = [0] * (len(longer) - 2) + [1, 1]
        rows.append(row | ({"teacher_attention_mask": [1] * len(longer)} if mask else {}))
    return rows


@pytest.mark.parametrize("mask", [True, False])
def test_two_tokenizers_need_no_collator(tmp_path, mask):
    """The teacher gets its own tokens, padded with its own padding token, masked, and with their types."""
    teacher = _teacher()
    teacher.config.pad_token_id = 4
    given = []
    teacher.register_forward_pre_hook(lambda module, args, kwargs: given.append(kwargs), with_kwargs=True)
    data = datasets.Dataset.from_list(_rows(mask))
    trainer = make_trainer(
        tmp_path,
        model=_student(),
        teacher=teacher,
        data=data,
        eval_data=data,
        trainer={"processing_class": _tokenizer(1)},
    )
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
    assert training_logs(trainer)[0]["ot_loss"] > 0
    batch = given[-1]
    assert set(batch) >= {"input_ids", "attention_mask", "token_type_ids"}
    assert ((batch["input_ids"] == 4) >= (batch["attention_mask"] == 0)).all()
    assert (batch["attention_mask"] == 0).any()
    assert (batch["token_type_ids"].sum(-1) == 2).all()


def test_padding_teachers_tokens_changes_nothing(tmp_path):
    """A batch of rows of several lengths costs what the rows cost one by one."""
    rows, logits = _rows(True), []
    teacher = Teacher(_teacher())
    collate = TeacherTokenCollator(DataCollatorWithPadding(_tokenizer(1)))
    for batch in [collate(rows), *[collate([row]) for row in rows]]:
        assert batch["labels"].shape == batch["input_ids"].shape[:1]
        logits.append(teacher(teacher.inputs_for(batch)))
    torch.testing.assert_close(logits[0], torch.cat(logits[1:]), rtol=1e-4, atol=1e-5)


def test_rows_without_teachers_columns_are_the_tokenizers(tmp_path):
    collate = TeacherTokenCollator(DataCollatorWithPadding(_tokenizer(1)), pad=3)
    rows = [{"input_ids": [5, 6]}, {"input_ids": [7]}]
    assert collate(rows)["input_ids"].tolist() == [[5, 6], [7, 1]]
    assert collate.tokenizer.pad_token_id == 1
