"""A local Hub: an HTTP server on the loopback address that the real `huggingface_hub` client can push to and load from.

Written for the tests of this package, on the standard library and PyYAML. It keeps repositories, commits, branches,
tags and pull requests in a directory, checks tokens, and can be told to fail in chosen places.
Try it by hand with `python -m tests.hub_server --dir hub-files --port 8765`.

It approximates the Hub; a test that passes here shows that the client and this package agree with these rules,
not that huggingface.co will accept the same push.
"""

from tests.hub_server.server import HubServer

__all__ = ["HubServer"]
