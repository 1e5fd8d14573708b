"""Distances between documents: hierarchical transport over topics, and word mover's distances."""
