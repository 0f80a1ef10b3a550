"""Ten kinds of damage to a healthy repository, each chosen by a seeded generator.

misspelt name        a letter is lost, doubled, changed or swapped
impossible version   a pin of a version that was never published
wrong platform       a pin without a wheel for linux/arm64, or a package for Windows or macOS
old pin              a pin from before this Python
contradicting pins   a second pin of the same package, or one that excludes another's
removed dependency   a package that the code imports is not named
broken syntax        a slip of the pen, or a stray character anywhere
conda-only name      conda's name, or a package that only conda has, where the index's are expected
import name          the module's name instead of the package's
wrong Python         a Python that nobody provides, or an end that lies before it
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from flops.errors import DependencyError
from flops.formats.requirements import read

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

ITEM = re.compile(r"^(?P<head>\s*(?:-\s+)?)(?P<name>[A-Za-z][\w.-]*)(?P<spec>\s*[=<>!~][^;#\s]*)?(?P<tail>.*)$")
NOT_PACKAGES = {"python", "pip", "name", "channels", "dependencies", "conda-forge", "defaults"}


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What an index has that breaks a repository: PEP 508 pins, and versions by package."""

    elsewhere: tuple[str, ...]
    """Packages for Windows or macOS alone."""
    one_platform: tuple[str, ...]
    """No wheel for linux/arm64, but other versions have one."""
    old: dict[str, tuple[str, ...]]
    """No wheel for the Pythons that are offered."""
    excludes: dict[str, tuple[str, ...]]
    """Pins that the samples' pins of a package exclude."""


REAL = Choices(
    elsewhere=("pywin32==306", "pywinpty==2.0.13", "pyobjc-core==10.1", "tensorflow-macos==2.15.0", "appscript==1.2.5"),
    one_platform=(
        "psutil==5.9.8",
        "psutil==5.9.6",
        "lightgbm==3.1.1",
        "h5py==3.11.0",
        "hdbscan==0.8.40",
        "grpcio==1.51.3",
    ),
    old={
        "numpy": ("1.19.5", "1.21.6"),
        "pandas": ("1.1.5", "1.3.5"),
        "scikit-learn": ("0.24.2",),
        "scipy": ("1.7.3",),
        "pyyaml": ("5.4.1",),
        "pillow": ("8.4.0",),
        "torch": ("1.12.1", "1.10.0"),
        "tensorflow": ("2.10.1", "2.8.0"),
        "matplotlib": ("3.4.3",),
        "pyarrow": ("6.0.1",),
        "psutil": ("5.6.7",),
    },
    excludes={
        "numpy": ("tensorflow==2.12.0", "numba==0.57.1", "opencv-python-headless==4.12.0.88", "scipy==1.7.3"),
        "requests": ("urllib3==1.20",),
        "torch": ("torchvision==0.14.1", "torchvision==0.21.0"),
        "scikit-learn": ("numpy==1.16.0",),
    },
)
MADE = Choices(
    elsewhere=("pywin32==306",),
    one_platform=("psutil==5.9.8", "psutil==5.9.6", "lightgbm==3.3.5"),
    old={
        "numpy": ("1.19.5", "1.21.6"),
        "pandas": ("1.1.5", "1.3.5"),
        "scikit-learn": ("0.24.2",),
        "scipy": ("1.7.3",),
        "pyyaml": ("5.4.1",),
        "pillow": ("8.4.0",),
    },
    excludes={"numpy": ("tensorflow==2.12.0",), "torch": ("torchvision==0.21.0",)},
)
#: Packages that others bring, so that leaving them out of the file breaks nothing.
BROUGHT = {
    "scipy": {"scikit-learn", "xgboost", "lightgbm"},
    "joblib": {"scikit-learn"},
    "torch": {"torchvision"},
    "pillow": {"torchvision", "matplotlib"},
    "python-dateutil": {"pandas", "matplotlib"},
}
CONDA_ONLY = (
    ("cudatoolkit", "11.8"),
    ("cudnn", "8.9.2"),
    ("libgcc-ng", "13.2.0"),
    ("mkl-service", "2.4.0"),
    ("pytorch-cuda", "11.8"),
    ("ncurses", "6.4"),
    ("ca-certificates", "2024.2.2"),
    ("_libgcc_mutex", "0.1"),
    ("openssl", "3.0.12"),
    ("suitesparse", "5.10.1"),
    ("libspatialite", "5.0.1"),
    ("gsl", "2.7"),
)
CONDA_NAMES = {
    "torch": "pytorch",
    "opencv-python-headless": "opencv",
    "matplotlib": "matplotlib-base",
    "tables": "pytables",
    "numpy": "numpy-base",
    "xgboost": "py-xgboost",
    "pyarrow": "pyarrow-core",
}
MODULES = {
    "scikit-learn": "sklearn",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "opencv-python-headless": "cv2",
    "python-dateutil": "dateutil",
}
STRAY = "!@$%^&*()[]{}:;,/\\|?'\"`~+=<>-"
NO_PYTHON = ("2.7", "3.4", "3.6.9", "3.8.10", "3.10.14", "3.12.1", "3.99", "<3.9")


@dataclass(frozen=True, kw_only=True)
class Mutant:
    files: dict[str, str]
    what: str
    """The damage, in words."""


@dataclass(frozen=True, kw_only=True)
class _Item:
    """One requirement of the dependency file."""

    index: int
    name: str
    spec: str
    match: re.Match[str]
    conda: bool
    """Whether conda itself installs it, so that `=` pins."""


@dataclass(frozen=True, kw_only=True)
class _File:
    files: dict[str, str]
    path: str
    lines: list[str]
    choices: Choices

    @classmethod
    def of(cls, files: dict[str, str], choices: Choices) -> _File:
        path = next(name for name in files if not name.endswith(".py"))
        return cls(files=files, path=path, lines=files[path].splitlines(), choices=choices)

    @property
    def items(self) -> list[_Item]:
        found = []
        inside = None
        for index, line in enumerate(self.lines):
            match = ITEM.match(line)
            indent = len(line) - len(line.lstrip())
            if line.strip() == "- pip:":
                inside = index
            elif match and match["name"].lower() not in NOT_PACKAGES and not line.rstrip().endswith(":"):
                listed = self.path.endswith(".txt") or line.lstrip().startswith("- ")
                if listed and indent >= 0 and not line.startswith(("name", "channels")):
                    conda = not self.path.endswith(".txt") and inside is None
                    spec = (match["spec"] or "").strip()
                    found.append(_Item(index=index, name=match["name"], spec=spec, match=match, conda=conda))
        return found

    def having(self, names) -> list[_Item]:
        return [item for item in self.items if item.name in names]

    def replaced(self, index: int, line: str | None, what: str) -> Mutant:
        lines = [line if number == index else old for number, old in enumerate(self.lines)]
        text = "\n".join(one for one in lines if one is not None) + "\n"
        return Mutant(files={**self.files, self.path: text}, what=what)

    def pinned(self, item: _Item, version: str, name: str | None = None) -> str:
        sign = "=" if item.conda else "=="
        return f"{item.match['head']}{name or item.name}{sign}{version}{item.match['tail']}"

    def added(self, requirement: str, what: str) -> Mutant:
        """As the last line of the list."""
        last = self.items[-1]
        name, _, version = requirement.partition("==")
        sign = "=" if last.conda else "=="
        line = f"{last.match['head']}{name}{sign}{version}"
        text = "\n".join([*self.lines[: last.index + 1], line, *self.lines[last.index + 1 :]]) + "\n"
        return Mutant(files={**self.files, self.path: text}, what=what)


def misspelt_name(file: _File, random: Random) -> Mutant:
    item = random.choice([item for item in file.items if len(item.name) > 4])
    name, place = item.name, random.randrange(1, len(item.name) - 1)
    letter = random.choice(string.ascii_lowercase)
    new = random.choice(
        (
            name[:place] + name[place + 1 :],
            name[:place] + name[place] + name[place:],
            name[:place] + letter + name[place + 1 :],
            name[:place] + name[place + 1] + name[place] + name[place + 2 :],
        )
    )
    if canonicalize_name(new) == canonicalize_name(name):
        new = name + name[-1]
    line = file.lines[item.index].replace(name, new, 1)
    return file.replaced(item.index, line, f"{name} -> {new}")


def impossible_version(file: _File, random: Random) -> Mutant:
    item = random.choice([item for item in file.items if re.fullmatch(r"==?[\d.]+", item.spec)])
    numbers = item.spec.lstrip("=").split(".")
    place = random.randrange(len(numbers))
    numbers[place] = str(random.choice((77, 99, 990)))
    version = ".".join(numbers[: place + 1] if random.random() < 0.5 else numbers)
    return file.replaced(item.index, file.pinned(item, version), f"{item.name} {version}")


def wrong_platform(file: _File, random: Random) -> Mutant:
    present = {item.name for item in file.items}
    chosen = random.choice([*file.choices.elsewhere, *file.choices.one_platform])
    name, _, version = chosen.partition("==")
    if name in present:
        (item, *_) = file.having({name})
        return file.replaced(item.index, file.pinned(item, version), chosen)
    return file.added(chosen, f"added {chosen}")


def old_pin(file: _File, random: Random) -> Mutant:
    item = random.choice(file.having(file.choices.old))
    version = random.choice(file.choices.old[item.name])
    return file.replaced(item.index, file.pinned(item, version), f"{item.name} {version}")


def contradicting_pins(file: _File, random: Random) -> Mutant:
    pinned = [item for item in file.items if re.fullmatch(r"==?[\d.]+", item.spec)]
    present = {item.name for item in file.items}
    others = [
        (item, other)
        for item in file.having(file.choices.excludes)
        for other in file.choices.excludes[item.name]
        if item.spec and other.partition("==")[0] not in present
    ]
    if others and random.random() < 0.5:
        item, other = random.choice(others)
        return file.added(other, f"{other} beside {item.name}{item.spec}")
    item = random.choice(pinned)
    numbers = item.spec.lstrip("=").split(".")
    place = 0 if int(numbers[0]) else 1
    numbers = [
        str(int(number) - 1) if index == place and int(number) else number for index, number in enumerate(numbers)
    ]
    other = ".".join(numbers)
    return file.added(f"{item.name}=={other}", f"{item.name}=={other} beside {item.name}{item.spec}")


def removed_dependency(file: _File, random: Random) -> Mutant:
    code = "\n".join(text for path, text in file.files.items() if path.endswith(".py"))
    imported = {line.split()[1].partition(".")[0] for line in code.splitlines() if line.startswith("import ")}
    names = [item for item in file.items if MODULES.get(item.name, item.name.replace("-", "_")) in imported]
    present = {item.name for item in file.items}
    names = [item for item in names if item.name != "numpy" and not BROUGHT.get(item.name, set()) & present]
    item = random.choice(names)
    return file.replaced(item.index, None, f"without {item.name}")


SLIPS: tuple[Callable[[str], str], ...] = (
    lambda line: re.sub(r"==", "=>", line, count=1),
    lambda line: re.sub(r"==", " ", line, count=1),
    lambda line: re.sub(r"==?(\d+)\.", r"==\1..", line, count=1),
    lambda line: re.sub(r"(==?[\d.]+)", r"\1:", line, count=1),
    lambda line: re.sub(r"(==?)[\d.]+", r"==", line, count=1),
    lambda line: re.sub(r"([A-Za-z])(==?\d)", r"\1]\2", line, count=1),
    lambda line: re.sub(r"^(\s*-)\s+", r"\1", line),
    lambda line: re.sub(r"^(\s*(?:- )?)(\S+)", r'\1"\2', line, count=1),
    lambda line: re.sub(r"([A-Za-z])==(\d)", r"\1=\2", line, count=1),
    lambda line: re.sub(r"([A-Za-z])==?(\d)", r"\1: \2", line, count=1),
)


def broken_syntax(file: _File, random: Random) -> Mutant:
    if random.random() < 0.5:
        return stray_character(file, random)
    slips = [
        (item, broken)
        for item in file.items
        for slip in SLIPS
        if (broken := slip(file.lines[item.index])) != file.lines[item.index]
        and not (item.conda and re.search(r"\w (\d)", broken))
    ]
    item, broken = random.choice(slips)
    return file.replaced(item.index, broken, broken.strip())


def stray_character(file: _File, random: Random) -> Mutant:
    """Somewhere in a line, where it makes the file unreadable."""
    while True:
        item = random.choice(file.items)
        line = file.lines[item.index]
        place = random.randrange(len(item.match["head"]), len(line.split(" #")[0].rstrip()) + 1)
        broken = line[:place] + random.choice(STRAY) + line[place:]
        mutant = file.replaced(item.index, broken, broken.strip())
        try:
            read({path: text.encode() for path, text in mutant.files.items()})
        except DependencyError:
            return mutant


def conda_only_name(file: _File, random: Random) -> Mutant:
    pip = [item for item in file.items if not item.conda]
    named = [item for item in pip if item.name in CONDA_NAMES]
    if named and random.random() < 0.5:
        item = random.choice(named)
        line = file.lines[item.index].replace(item.name, CONDA_NAMES[item.name], 1)
        return file.replaced(item.index, line, f"{item.name} -> {CONDA_NAMES[item.name]}")
    name, version = random.choice(CONDA_ONLY)
    return file.added(f"{name}=={version}", f"added {name} {version}")


def import_name(file: _File, random: Random) -> Mutant:
    items = file.having(MODULES)
    if not items:
        module = random.choice(sorted(MODULES.values()))
        last = file.items[-1]
        line = f"{last.match['head']}{module}"
        text = "\n".join([*file.lines[: last.index + 1], line, *file.lines[last.index + 1 :]]) + "\n"
        return Mutant(files={**file.files, file.path: text}, what=f"added {module}")
    item = random.choice(items)
    line = file.lines[item.index].replace(item.name, MODULES[item.name], 1)
    return file.replaced(item.index, line, f"{item.name} -> {MODULES[item.name]}")


def wrong_python(file: _File, random: Random) -> Mutant:
    wanted = random.choice(NO_PYTHON)
    text = f"python{wanted}" if wanted[0] in "<>" else f"python={wanted}"
    for index, line in enumerate(file.lines):
        if line.lstrip().startswith("- python"):
            head = line[: line.index("python")]
            return file.replaced(index, f"{head}{text}", text)
    lines = "\n".join(f"  - {line}" for line in file.lines if line and not line.startswith("#"))
    conda = f"dependencies:\n- {text}\n- pip:\n{lines}\n"
    files = {path: text for path, text in file.files.items() if path != file.path}
    return Mutant(files={**files, "conda.yaml": conda}, what=text)


KINDS: dict[str, Callable[[_File, Random], Mutant]] = {
    kind.__name__.replace("_", " ").replace("python", "Python"): kind
    for kind in (
        misspelt_name,
        impossible_version,
        wrong_platform,
        old_pin,
        contradicting_pins,
        removed_dependency,
        broken_syntax,
        conda_only_name,
        import_name,
        wrong_python,
    )
}


def mutate(files: dict[str, str], kind: str, random: Random, choices: Choices = REAL) -> Mutant:
    """The repository with one damage of this kind."""
    return KINDS[kind](_File.of(files, choices), random)
