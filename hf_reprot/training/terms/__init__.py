"""The terms of a transfer's loss: one file each, what a term is (`base`), and which there are (`registry`)."""
