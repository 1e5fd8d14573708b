"""Layers: finding them in a model, recording their activations as tables of neurons, and pairing them."""
