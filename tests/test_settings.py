"""The settings parse as a Trainer user's do, and say what weighs a term."""

from transformers import HfArgumentParser

from hf_reprot import OTTransferConfig
from hf_reprot.utils.settings import settings_of_loss, weight_counts, weights_of_terms


def test_the_stock_parser_takes_the_settings(tmp_path):
    parser = HfArgumentParser(OTTransferConfig)
    (args,) = parser.parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--ot_weight", "3", "--kd_weight", "0.5", "--ot_method", "proximal"]
    )
    assert (args.ot_weight, args.kd_weight, args.ot_method) == (3.0, 0.5, "proximal")
    assert "Weight of the transport term" in parser.format_help()


def test_weights_say_what_they_weigh():
    weights = weights_of_terms(OTTransferConfig)
    assert {"task_weight", "ot_weight", "kd_weight", "l2sp_weight", "feature_weight"} <= set(weights)
    assert set(weights_of_terms(OTTransferConfig, "logits")) == {"kd_weight"}
    assert "kd_temperature" in settings_of_loss(OTTransferConfig)
    assert not weight_counts(OTTransferConfig, "feature_weight", {"feature_weight": 1.0, "feature_loss": None})
    assert weight_counts(OTTransferConfig, "feature_weight", {"feature_weight": 1.0, "feature_loss": "cka"})
