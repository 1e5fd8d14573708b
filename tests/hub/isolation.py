"""Processes that have the libraries of a stranger: this package cannot be imported there."""

BLOCK = """
import sys

class _Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_reprot":
            raise ImportError("hf_reprot is not installed here")

sys.meta_path.insert(0, _Blocked())
try:
    import hf_reprot
except ImportError:
    pass
else:
    raise SystemExit("hf_reprot could be imported")
"""
