"""What this package uses of the library `datasets`, by its names; without the library, what data sets of torch need.

On a machine without it (a cluster's image, say) training on data sets of torch works all the same: types of columns are
told as ever, nothing is one of the library's data sets, and what would load one says what is missing.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or find_spec("datasets") is not None:
    from datasets import (
        ClassLabel,
        Dataset,
        DatasetDict,
        DatasetInfo,
        Features,
        Image,
        IterableDataset,
        IterableDatasetDict,
        LargeList,
        List,
        Split,
        Value,
        load_dataset,
        load_from_disk,
    )
else:

    def missing(*_: Any, **__: Any) -> Any:
        """Says what is missing.

        Raises:
            ImportError: always.
        """
        raise ImportError("this needs the library datasets: pip install datasets, or give a data set of torch")

    class _Type:
        """A type of a column, with what it was made of."""

        def __init__(self, inner: Any = None, **facts: Any):
            self.dtype = self.feature = inner
            self.__dict__ |= facts

    class ClassLabel(_Type):
        @property
        def num_classes(self) -> int:
            return len(self.names)

    class Image(_Type):
        mode = None

    class LargeList(_Type):
        pass

    class List(_Type):
        pass

    class Value(_Type):
        pass

    class _Absent:
        """Nothing is one of these."""

        __init__ = missing
        from_dict = staticmethod(missing)

    class Dataset(_Absent):
        pass

    class DatasetDict(_Absent):
        pass

    class DatasetInfo(_Absent):
        pass

    class Features(_Absent):
        pass

    class IterableDataset(_Absent):
        pass

    class IterableDatasetDict(_Absent):
        pass

    class Split:
        TRAIN, VALIDATION, TEST = "train", "validation", "test"

    load_dataset = load_from_disk = missing
