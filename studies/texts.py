"""Training on tokenised texts, a teacher whose tokens are kept, and the scores: for `studies.distil_text_encoder`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from datasets import Dataset, load_from_disk
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from transformers import (
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PrinterCallback,
    set_seed,
)

from hf_reprot import OTTransferConfig, OTTransferTrainer
from hf_reprot.features.activations import pooled_neurons
from hf_reprot.features.tables import evaluating
from hf_reprot.features.taps import Taps

LENGTH = 32  # tokens at most
_BATCH = 50


def tokenized(folder: str, tokenizer) -> tuple[Dataset, Dataset, dict[str, Dataset]]:
    """4,000 film snippets to learn from, 500 to choose weights by, and up to 1,000 of each domain to test on.

    Args:
        folder: What the carrier "sentiment-snippets" wrote.
        tokenizer: Of student and teacher.

    Returns:
        Columns "input_ids", "attention_mask", "token_type_ids" and "labels"; for those to learn from, also
        "teacher_index", the row of each.
    """
    data = load_from_disk(folder)
    data = data.map(lambda rows: tokenizer(rows["text"], truncation=True, max_length=LENGTH), batched=True)
    data = data.remove_columns(["text", "valence"]).rename_column("label", "labels").shuffle(seed=0)
    films = data.pop("train")
    pool = films.select(range(4000)).add_column("teacher_index", range(4000))
    tests = {name: split.select(range(min(1000, len(split)))) for name, split in data.items()}
    return pool, films.select(range(4000, 4500)), tests


class RememberedTexts(nn.Module):
    """A teacher's last tokens and logits, computed once: takes `teacher_index`, gives the logits.

    Its layer is `tokens`, (texts, LENGTH, neurons). The texts are padded to one length, as the student's must be.

    Args:
        model: The teacher.
        texts: Tokenised.
        tokenizer: Of both.
    """

    @torch.no_grad()
    def __init__(self, model: BertForSequenceClassification, texts: Dataset, tokenizer):
        super().__init__()
        tokens, logits = [], []
        for batch in batches(texts, tokenizer):
            outputs = model(**batch, output_hidden_states=True)
            tokens.append(outputs.hidden_states[-1])
            logits.append(outputs.logits.float())
        self.width = tokens[0].shape[-1]
        # an embedding, by which a layer that is no transformers model is known to hold a text's tokens
        self.table = nn.Embedding.from_pretrained(torch.cat(tokens).flatten(1))
        self.register_buffer("logits", torch.cat(logits))
        self.tokens = nn.Identity()

    def forward(self, index: Tensor) -> Tensor:
        length = LENGTH
        if index.ndim == 2:  # dummy texts, on which a trainer looks at widths
            index, length = torch.arange(len(index)), index.shape[1]
        self.tokens(self.table(index).unflatten(1, (LENGTH, self.width))[:, :length].float())
        return self.logits[index]


def train(model, teacher: nn.Module | None, data: Dataset, tokenizer, *, seed: int, steps: int, **settings) -> None:
    """Trains a student with the trainer."""
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no"}
    how = {"learning_rate": 1e-3, "lr_scheduler_type": "cosine", "warmup_steps": 0.1, "use_cpu": True, **quiet}
    how |= {"per_device_train_batch_size": 32, "remove_unused_columns": False, "ot_weight": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        trainer = OTTransferTrainer(
            model=model,
            teacher_model=teacher,
            args=OTTransferConfig(output_dir=folder, max_steps=steps, seed=seed, **how | settings),
            train_dataset=data,
            data_collator=DataCollatorWithPadding(tokenizer, padding="max_length", max_length=LENGTH),
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trainer.transfer.close()


def finetuned(name: str, data: Dataset, tokenizer, folder: Path) -> BertForSequenceClassification:
    """The teacher, in bfloat16: its upper half is trained on all labels of the data, twice over.

    Args:
        name: Hub id or folder of a BERT.
        data: Tokenised, with "labels" and "teacher_index".
        tokenizer: The teacher's.
        folder: Where it is kept, and taken from if it is there.
    """
    if not folder.is_dir():
        set_seed(0)
        model = BertForSequenceClassification.from_pretrained(name, num_labels=2)
        model.bert.embeddings.requires_grad_(False)
        model.bert.encoder.layer[: model.config.num_hidden_layers // 2].requires_grad_(False)
        train(
            model,
            None,
            data.remove_columns("teacher_index"),
            tokenizer,
            seed=0,
            steps=len(data) // 16,
            learning_rate=2e-4,
            bf16=True,
        )
        model.save_pretrained(folder)
    return BertForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16).eval()


def batches(texts: Dataset, tokenizer) -> Iterator[dict[str, Tensor]]:
    """Padded tokens and masks, in order."""
    columns = {name: texts[name][:] for name in ("input_ids", "attention_mask")}
    for start in range(0, len(texts), _BATCH):
        part = {name: column[start : start + _BATCH] for name, column in columns.items()}
        yield tokenizer.pad(part, padding="max_length", max_length=LENGTH, return_tensors="pt")


@torch.no_grad()
def labels_right(model: PreTrainedModel, texts: Dataset, tokenizer) -> float:
    """Accuracy of the model's own head."""
    with evaluating(model):
        found = torch.cat([model(**batch).logits.argmax(-1) for batch in batches(texts, tokenizer)])
    return (found == torch.tensor(texts["labels"][:])).double().mean().item()


def linear_head_right(
    model: PreTrainedModel, layer: str, few: Dataset, parts: Mapping[str, Dataset], tokenizer
) -> dict[str, float]:
    """Accuracy of a logistic regression on a layer's mean over the tokens, learned from a few labels."""
    head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    head.fit(_means(model, layer, few, tokenizer), few["labels"][:])
    means = {name: _means(model, layer, part, tokenizer) for name, part in parts.items()}
    return {name: float(head.score(means[name], part["labels"][:])) for name, part in parts.items()}


@torch.no_grad()
def _means(model: PreTrainedModel, layer: str, texts: Dataset, tokenizer):
    taps, means = Taps(model, [layer]), []
    with evaluating(model):
        for batch in batches(texts, tokenizer):
            with taps.recording():
                model(**batch)
            means.append(pooled_neurons(taps.take()[layer], tokens="patches", mask=batch["attention_mask"]))
    taps.close()
    return torch.cat(means).numpy()
