"""Peak memory of converting one wheel to a layer, for wheels of several sizes: it must not grow with them.

    python bench/memory.py [--sizes 200,2000] [--json]

Each wheel (MB, as it lies on disk) holds one file of pseudo-random blocks, deflated at level 1. It is converted in a
process of its own, whose peak resident memory is what counts.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from flops.oci.blobs import BlobStore
from flops.oci.layer import LayerWriter
from flops.wheels.wheel_layer import WheelFile, write_layer

FILENAME = "large-1.0-py3-none-any.whl"
BLOCK = 1_000_000
#: Distinct blocks, taken in turn: more than deflate's window sees, so none is found again.
BLOCKS = 16
#: MB that the peak may differ by, from the smallest wheel to the largest.
FLAT = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="200,2000", metavar="MB[,MB]")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--convert", type=Path, metavar="WHEEL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.convert:
        print(json.dumps(convert(options.convert)))
        return 0
    peaks = {}
    for size in map(int, options.sizes.split(",")):
        with tempfile.TemporaryDirectory(prefix="flops-bench-") as place:
            wheel = make_wheel(Path(place), size)
            words = [sys.executable, __file__, "--convert", str(wheel)]
            done = json.loads(subprocess.run(words, check=True, capture_output=True, timeout=1800).stdout)
        peaks[size] = done["peak"]
        if not options.json:
            print(f"wheel of {size} MB: peak {done['peak']:.1f} MB, {done['seconds']:.1f} s", flush=True)
    if options.json:
        print(json.dumps({"peaks": peaks}))
    return int(max(peaks.values()) - min(peaks.values()) > FLAT)


def make_wheel(place: Path, size: int) -> Path:
    """A wheel of about so many MB on disk."""
    blocks = [random.Random(number).randbytes(BLOCK) for number in range(BLOCKS)]
    digest = hashlib.sha256()
    path = place / FILENAME
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("large/weights.bin", "w", force_zip64=True) as file:
            for number in range(size):
                file.write(blocks[number % BLOCKS])
                digest.update(blocks[number % BLOCKS])
        lines = [f"large/weights.bin,{record_hash(digest.digest())},{size * BLOCK}"]
        texts = {
            "METADATA": "Metadata-Version: 2.1\nName: large\nVersion: 1.0\n",
            "WHEEL": "Wheel-Version: 1.0\nGenerator: bench\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        for name, text in texts.items():
            archive.writestr(f"large-1.0.dist-info/{name}", text)
            found = record_hash(hashlib.sha256(text.encode()).digest())
            lines.append(f"large-1.0.dist-info/{name},{found},{len(text)}")
        lines.append("large-1.0.dist-info/RECORD,,")
        archive.writestr("large-1.0.dist-info/RECORD", "\n".join(lines) + "\n")
    return path


def record_hash(digest: bytes) -> str:
    """As RECORD has it (binary distribution format)."""
    return "sha256=" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def convert(path: Path) -> dict[str, float]:
    """Make the layer, as a build does; its peak memory in MB, and seconds."""
    begun = time.monotonic()
    store = BlobStore(path.parent / "store")
    wheel = WheelFile(path=path, sha256="0" * 64, filename=path.name)
    with store.writer() as blob:
        layer = write_layer([wheel], prefix="opt/flops/ml", python="3.11", writer=LayerWriter(blob))
        blob.commit(layer.digest)
    if store.size(layer.digest) != layer.size:
        raise SystemExit("the layer is not whole")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return {"peak": peak, "seconds": time.monotonic() - begun, "bytes": layer.size}


if __name__ == "__main__":
    sys.exit(main())
