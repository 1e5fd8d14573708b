"""The settings of a run: what they are called, what is legal, what goes together. Known without importing torch."""
