"""How long it takes to reduce 30 requirements to the two that exclude each other, on the machine's own index.

    python bench/conflict.py [CACHE_DIR]

The index cache is warmed by a lock of the 28 others and by one failed lock; neither is part of the figure. Printed: the
lines that were found and the seconds, with uv's words as a guess to begin with and without them (as if uv said nothing).
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from flops.formats.requirements import read
from flops.locking.lock import Locker
from flops.platforms import Platform
from flops.repair import pin_repairs
from flops.repair.pin_repairs import FailedTrial
from flops.repair.pythons import PythonChoice
from flops.repair.trial import IndexPages, Trial
from flops.settings import Settings

#: pandas 2.2.1 asks for NumPy 1; all others take NumPy 2.1.
TWO = {"numpy==2.1.0", "pandas==2.2.1"}
OTHERS = """\
attrs==24.2.0
certifi==2024.8.30
charset-normalizer==3.4.0
click==8.1.7
cloudpickle==3.1.0
contourpy==1.3.1
cycler==0.12.1
filelock==3.16.1
fonttools==4.55.0
fsspec==2024.10.0
idna==3.10
jinja2==3.1.4
joblib==1.4.2
kiwisolver==1.4.7
markupsafe==3.0.2
matplotlib==3.9.2
networkx==3.4.2
packaging==24.2
pillow==11.0.0
psutil==6.1.0
pyparsing==3.2.0
python-dateutil==2.9.0.post0
pyyaml==6.0.2
requests==2.32.3
scikit-learn==1.5.2
scipy==1.14.1
tqdm==4.67.0
urllib3==2.2.3
"""
PYTHON = PythonChoice(version="3.11.2", minor="3.11", glibc=(2, 36), provider="debian", suite="bookworm")


def requirements() -> str:
    """The two stand apart from each other, as in a file that is sorted by name."""
    lines = [*OTHERS.splitlines(), *TWO]
    return "\n".join(sorted(lines)) + "\n"


def reduce(locker: Locker, text: str) -> tuple[set[str], float]:
    """The lines that were found, and how long that took after the lock had failed."""
    entries = read({"requirements.txt": text.encode()}).entries
    with IndexPages(locker) as pages:
        trial = Trial(locker, pages, PYTHON, sorted(Platform))
        outcome = trial.lock(dict.fromkeys(trial.platforms, entries))
        begun = time.perf_counter()
        failed = FailedTrial(trial=trial, entries=entries, outcome=outcome, modules=())
        found = failed.findings()
        return {text.splitlines()[finding.line - 1] for finding in found}, time.perf_counter() - begun


def main() -> None:
    settings = Settings.read()
    with tempfile.TemporaryDirectory() as temporary:
        cache = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        locker = Locker(cache, index_url=settings.index_url, ca_bundle=settings.ca_bundle)
        text = requirements()
        reduce(locker, text)
        print(f"{len(text.splitlines())} requirements, {len(Platform)} platforms")
        for name, guess in (
            ("with uv's words as a guess", pin_repairs.mentions),
            ("without a guess", lambda *_: False),
        ):
            pin_repairs.mentions = guess
            found, seconds = reduce(locker, text)
            print(
                f"{name}: {seconds:.1f} s, {'exactly the two' if found == TWO else 'WRONG'}: {', '.join(sorted(found))}"
            )


if __name__ == "__main__":
    main()
