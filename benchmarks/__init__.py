"""Benchmarks: the solvers beside their peers, and what a training step costs."""
