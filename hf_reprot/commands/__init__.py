"""What each command of `hf-reprot` runs; every one can be called from Python."""
