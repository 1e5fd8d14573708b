"""Differentiable top-k by transport: soft selection, its losses, a soft k-NN head, and neuron selection."""
