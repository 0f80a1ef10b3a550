"""What an ML repository calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flops_worker.data import read_table

if TYPE_CHECKING:
    import datasets


def load_dataset() -> datasets.Dataset:
    """All of this learner's data whose tags match, as one `datasets.Dataset` over Arrow memory, in numpy format.

    A column is a numpy array (`dataset["image"].reshape(...)`), images are decoded, floats are float32; with_format()
    and set_format() change that. flops_worker.data.DataMissing where there is none.
    """
    import datasets  # noqa: PLC0415 - the user's own, and slow to import

    return datasets.Dataset(read_table()).with_format("numpy")
