"""Helpers that know nothing of transport: messages, JSON, lazy names, running models."""
