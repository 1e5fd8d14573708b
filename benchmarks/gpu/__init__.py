"""All that only a GPU can tell, by one command: see `benchmarks.gpu.__main__`."""
