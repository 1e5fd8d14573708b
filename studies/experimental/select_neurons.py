"""Which neurons of a teacher to learn from: planted ones, to be found again.

    python -m studies.experimental.select_neurons             # nothing to download, about 4 minutes on one core

8 of 32 teacher neurons make the labels. The others are noise ("noise"), or functions of the image that are easy to
learn and do not matter ("easy"), or some of both, doubles of one, and dead ones ("mixed"); all with a larger spread.
Shown is the share of the 8 that is found. `studies/experimental/select_on_digits.py` has real images.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from hf_reprot import OTTransferConfig, OTTransferTrainer
from hf_reprot.experimental.topk.training import SelectiveTransport
from hf_reprot.ot.cost import cost_from_moments
from hf_reprot.training.terms.transport import TransportTerm
from hf_reprot.utils.running import accuracy


class Planted(nn.Module):
    def __init__(self, kind: str, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        basis = torch.linalg.qr(torch.randn(768, 32))[0]
        self.task, self.rest = basis[:, :16] @ torch.randn(16, 8), basis[:, 16:] @ torch.randn(16, 24)
        self.kind, self.order, self.to_class = kind, torch.randperm(32), torch.randn(8, 6)
        self.neurons, self.head = nn.Identity(), nn.Linear(32, 6).requires_grad_(False)

    def layer(self, x):
        easy, noise = torch.relu(x @ self.rest), torch.sin(50 * x @ self.rest)
        mixed = torch.cat([0 * easy[:, :6], easy[:, :1].expand(-1, 6), noise[:, :6], easy[:, 18:]], 1)
        rest = {"noise": noise, "easy": easy, "mixed": mixed}[self.kind]
        return torch.cat([torch.relu(x @ self.task), 6 * rest], 1)[:, self.order]

    def forward(self, pixel_values):
        return self.head(self.neurons(self.layer(pixel_values.flatten(1))))


def vit(labels: int, seed: int) -> ViTForImageClassification:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return ViTForImageClassification(ViTConfig(**sizes, **off, image_size=16, patch_size=4, num_labels=labels))


def train(model, teacher, data, seed: int, steps: int, fixed=None, test=None, **settings) -> OTTransferTrainer:
    """`fixed`: the neurons to be taken from the second step on, whatever is learned."""
    rows = [[{"pixel_values": x, "labels": y} for x, y in zip(*d, strict=True)] for d in (data, test or data)]
    config = {"per_device_train_batch_size": 64, "learning_rate": 2e-3, "save_strategy": "no", "report_to": "none"}
    config |= {"max_steps": steps, "logging_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False}
    args = OTTransferConfig(output_dir="runs/select", **{**config, "seed": seed, "plan_momentum": 0.9, **settings})
    trainer = OTTransferTrainer(model, teacher, args, None, *rows, compute_metrics=accuracy)
    if fixed is not None:
        trainer.transfer.find(SelectiveTransport).selections[0].chosen.copy_(fixed.sort().values)
    trainer.train()
    return trainer


def separation(neurons, labels):
    """Spread of the class means: how well each neuron tells classes apart on its own."""
    x = torch.nan_to_num((neurons - neurons.mean(0)) / neurons.std(0))
    return torch.stack([x[labels == c].mean(0) for c in labels.unique()]).square().mean(0)


def planted_recall(kind: str, seed: int) -> dict[str, float]:
    teacher, x = Planted(kind, seed).eval(), torch.randn(1500, 3, 16, 16)
    h, t = torch.relu(x.flatten(1) @ teacher.task), teacher.layer(x.flatten(1))
    y = (((h - h.mean(0)) / h.std(0)) @ teacher.to_class).argmax(1)
    run = {"layer_pairs": ["last=neurons"], "data": (x, y), "seed": seed, "steps": 150}
    found = {"random": torch.randperm(32)[:8], "largest variance": t.var(0).topk(8).indices}
    found["tells classes apart by itself"] = separation(t, y).topk(8).indices
    plain = train(vit(6, seed), teacher, **run).transfer.find(TransportTerm).running[0].moments
    found["nearest to a student without selection"] = cost_from_moments(plain).amin(0).topk(8, largest=False).indices
    for by, momentum in (("transport", 0.0), ("task", 0.9)):
        trainer = train(vit(6, seed), teacher, select_k=8, select_by=by, **run, plan_momentum=momentum)
        selected = trainer.transfer.find(SelectiveTransport).selected()
        found[f"learned by {by}"] = torch.tensor(next(iter(selected.values())))
    return {name: (teacher.order[rows] < 8).float().mean().item() for name, rows in found.items()}


def show(title: str, rows: list[dict[str, float]]) -> None:
    print(title)
    for name in rows[0]:
        values = torch.tensor([row[name] for row in rows])
        print(
            f"  {name:40} {values.mean():.3f} ± {values.std():.3f}  ",
            [round(v, 3) for v in values.tolist()],
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    for kind in ("noise", "easy", "mixed"):
        show(f"planted, the rest is {kind}: share found", [planted_recall(kind, seed) for seed in seeds])
