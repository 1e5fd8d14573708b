"""`ot_method="auto"`: which transport it stands for."""

import pytest

from hf_reprot import OTTransferConfig, OTTransferTrainer
from tests.toy_models import Images, resnet, vit


@pytest.mark.parametrize(
    ("settings", "method", "momentum"),
    [
        ({}, "sinkhorn", 0.0),  # beside the task
        ({"task_weight": 0.0}, "gaussian", 0.9),  # without labels
        ({"task_weight": 0.0, "ot_positions": "all"}, "sinkhorn", 0.0),
        ({"task_weight": 0.0, "plan_momentum": 0.0}, "gaussian", 0.0),
        ({"task_weight": 0.0, "ot_method": "sinkhorn"}, "sinkhorn", 0.0),
        ({"task_weight": 0.0, "ot_method": "random"}, "random", 0.0),
        ({"ot_method": "gaussian"}, "gaussian", 0.9),
        ({"ot_method": "gaussian", "plan_momentum": 0.5}, "gaussian", 0.5),
        # what only neurons that are matched one by one have
        ({"task_weight": 0.0, "ot_debiased": True}, "sinkhorn", 0.0),
        ({"task_weight": 0.0, "ot_epsilon": 0.1}, "sinkhorn", 0.0),
        ({"task_weight": 0.0, "ot_standardize": False}, "sinkhorn", 0.0),
        ({"task_weight": 0.0, "ot_dead_neurons": "ignore"}, "sinkhorn", 0.0),
        ({"task_weight": 0.0, "select_k": 3, "select_by": "transport"}, "sinkhorn", 0.0),
        ({"task_weight": 0.0, "ot_cost": "learned"}, "sinkhorn", 0.0),
    ],
)
def test_auto_is_the_method_that_the_study_found_best(tmp_path, settings, method, momentum):
    config = OTTransferConfig(output_dir=str(tmp_path), report_to="none", **settings)
    assert (config.ot_method, config.plan_momentum) == (method, momentum)


def test_a_trainer_settles_what_was_set_after_the_config_was_made(tmp_path):
    config = OTTransferConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    config.task_weight, config.ot_method, config.plan_momentum = 0.0, "auto", None
    trainer = OTTransferTrainer(vit(), resnet(seed=1), config, train_dataset=Images())
    assert (trainer.args.ot_method, trainer.args.plan_momentum) == ("gaussian", 0.9)
