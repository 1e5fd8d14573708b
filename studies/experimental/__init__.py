"""Evidence for the experimental systems, one script each."""
