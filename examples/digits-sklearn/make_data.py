"""Writes data/digits.HASH.parquet from scikit-learn's own digits: `python make_data.py` (needs scikit-learn, pyarrow)."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.datasets import load_digits

ROWS = pa.schema([("image", pa.list_(pa.list_(pa.uint8()))), ("label", pa.int64())])


def main():
    digits = load_digits()
    # scikit-learn's rows come in a pattern of labels; shuffled, every part of them is a fair sample
    order = np.random.RandomState(0).permutation(len(digits.target))
    images = digits.images.astype(np.uint8)[order].tolist()
    table = pa.table({"image": images, "label": digits.target[order].tolist()}, schema=ROWS)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="gzip", compression_level=9)
    content = buffer.getvalue()
    # FLOps' form: the tag that a project asks for, then a hash
    path = Path(__file__).parent / "data" / f"digits.{hashlib.sha256(content).hexdigest()[:12]}.parquet"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


if __name__ == "__main__":
    main()
