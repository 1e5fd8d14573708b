"""Records of runs that never happened, for tests of cards."""

import math

from hf_reprot.hub.facts import DataFacts, ModelFacts, Speed, Start
from hf_reprot.hub.licenses import License
from hf_reprot.hub.record import Evaluation, PairFacts, RunRecord

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def history(steps: int = 400) -> list[dict[str, float]]:
    """A training log with two terms and an evaluation every 100 steps."""
    log = []
    for step in range(10, steps + 1, 10):
        task, transport = 2.3 * math.exp(-step / 150), 1.4 * math.exp(-step / 300) + 0.2
        log.append({"step": step, "loss": task + transport, "task_loss": task, "ot_loss": transport, "ot_cost": 0.4})
        if step % 100 == 0:
            accuracy = 0.93 - 0.8 * math.exp(-step / 120)
            log.append({"step": step, "eval_loss": task, "eval_accuracy": accuracy, "eval_runtime": 1.5})
    return log


def speed(rate: float) -> Speed:
    return Speed(rate, 16, "3 x 224 x 224", "Intel Xeon, 2 threads", "float32")


def record(**changes) -> RunRecord:
    """A timm student with random weights at the start, and a teacher and data from the Hub; `changes` are set on it."""
    sample = RunRecord(
        name="digits-student",
        student=ModelFacts("digits-student", "resnet18", "timm", 11_181_642, speed=speed(118.2)),
        start=Start("scratch"),
        job="distillation",
        task="image-classification",
        classes=10,
        input="3 x 224 x 224",
        teachers=[
            ModelFacts(
                "timm/resnet50.a1_in1k",
                "resnet50",
                "timm",
                25_557_032,
                "hub",
                COMMIT,
                License("apache-2.0"),
                {"accuracy": 0.951, "loss": 0.21},
                speed(41.7),
            )
        ],
        pairs=[
            PairFacts("timm_model.layer4", "layer4", 0, 0.75, 512, 2048, "images/transport_plan_1.png"),
            PairFacts("timm_model.layer3", "layer3", 0, 0.25, 256, 1024),
        ],
        train_data=DataFacts("ylecun/mnist", 60_000, "ylecun/mnist", "mnist", COMMIT, "train", License("mit")),
        evaluations=[
            Evaluation(
                DataFacts("ylecun/mnist", 10_000, "ylecun/mnist", "mnist", COMMIT, "test", License("mit")),
                {"loss": 0.2345678, "accuracy": 0.9234},
            )
        ],
        transfer={
            "task_weight": 1.0,
            "ot_weight": 0.5,
            "ot_warmup_steps": 0,
            "kd_weight": 0.0,
            "kd_temperature": 2.0,
            "l2sp_weight": 0.0,
            "layer_pairs": ["stages"],
            "ot_method": "sinkhorn",
            "ot_cost": "sqeuclidean",
            "ot_relative_epsilon": None,
            "plan_momentum": 0.9,
        },
        training={"learning_rate": 5e-4, "lr_scheduler_type": "cosine", "num_train_epochs": 3.0, "precision": "fp32"},
        seeds={"seed": 42},
        versions={"hf_reprot": "0.1.0", "torch": "2.14.1", "transformers": "5.24.0", "timm": "1.0.31"},
        hardware="1 process on a CPU",
        seconds=754.2,
        step=400,
        history=history(),
    )
    for name, value in changes.items():
        assert hasattr(sample, name), name
        setattr(sample, name, value)
    return sample
