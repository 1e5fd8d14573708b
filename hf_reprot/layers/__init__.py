"""What a layer is: where it stands in a model, what its axes mean, and its activations as tables."""
