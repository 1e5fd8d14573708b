"""Example runs, each with its data from a package registry."""
