"""Systems that work and are tested, and whose benefit our studies do not (yet) support.

What lives here may change or go in any release. A system enters with its tests, a source, and a script under `studies/`
that measures it beside its controls. It leaves for the core when that script shows it ahead of the default and of its
controls by an interval in at least three of four settings, and is removed when two releases pass without a user.

Importing a submodule warns once; set `HF_REPROT_EXPERIMENTAL_SILENCE=1` to silence it.
"""

from __future__ import annotations

import os
import warnings


class ExperimentalWarning(UserWarning):
    """A part of the library that may change or go in any release."""


if not os.environ.get("HF_REPROT_EXPERIMENTAL_SILENCE"):
    warnings.warn(
        "hf_reprot.experimental may change or go in any release; set HF_REPROT_EXPERIMENTAL_SILENCE=1 to silence this",
        ExperimentalWarning,
        stacklevel=2,
    )
