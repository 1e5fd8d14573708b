"""A student with one tensor under several names is saved, resumed and loaded."""

import torch

from hf_reprot.models.student import create_timm_student
from tests.toy_models import Images, resnet
from tests.training.runs import make_trainer, weights_of


def coat():
    torch.manual_seed(0)
    sizes = {"embed_dims": [16] * 4, "serial_depths": [1] * 4, "parallel_depth": 1, "mlp_ratios": [1] * 4}
    return create_timm_student("coat_tiny", ["a", "b", "c"], img_size=32, **sizes)


def test_checkpoints_hold_all_of_it(tmp_path):
    data = Images(8, image=32)
    settings = {"save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 4, "ot_weight": 0.1}
    whole = make_trainer(tmp_path, model=coat(), teacher=resnet(seed=1), data=data, **settings)
    whole.train()
    resumed = make_trainer(tmp_path, model=coat(), teacher=resnet(seed=1), data=data, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    ends = weights_of(resumed.model)
    assert all(torch.equal(value, ends[name]) for name, value in weights_of(whole.model).items())
