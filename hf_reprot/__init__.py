"""Representation transfer by optimal transport, for the Hugging Face ecosystem."""
