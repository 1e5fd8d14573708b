"""The parts of a training run that `OTTransferTrainer` puts together."""
