"""CPU or GPU: which builds of PyTorch and TensorFlow are locked, and what CUDA an image would carry.

Learners train on whatever node they are sent to, so the default is `cpu`. PyTorch has CPU builds of the same version on
an index of its own. TensorFlow has them on the ordinary index as `tensorflow-cpu`, for x86-64 only: the same release with
the same modules, so it takes the place of `tensorflow` there, unless a package of the lock asks for that by name.
Where a CPU build can't be had, the ordinary one is taken and its size told before it is fetched.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from packaging.version import Version

from flops.errors import Adjustment, DependencyError
from flops.locking.pylock import LockTarget
from flops.platforms import Platform
from flops.recipe import Accelerator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from flops.formats.requirement import Requirement
    from flops.formats.requirements import Requirements
    from flops.locking.lock import Lock, Locker
    from flops.repair.doctor import FoundLocks, PythonChoice

    #: Locks requirements with a locker; DependencyError.
    Solve = Callable[[Requirements, Locker], FoundLocks]

CPU_BUILD = "CPU_BUILD"
#: Packages with builds per accelerator on PyTorch's own index; they must come from there together.
TORCH = frozenset({"torch", "torchvision", "torchaudio"})
TENSORFLOW, TENSORFLOW_CPU = "tensorflow", "tensorflow-cpu"
#: TensorFlow's extra that brings CUDA's libraries.
AND_CUDA = "and-cuda"
CUDA_PREFIXES = ("nvidia-", "cuda-", "cupy-cuda", "jax-cuda", "tensorrt")
CUDA_NAMES = frozenset({"triton", "pytorch-triton", "onnxruntime-gpu", "faiss-gpu", "tensorflow-gpu"})


@dataclass(frozen=True, kw_only=True)
class Carried:
    """What a lock brings for GPUs."""

    packages: tuple[str, ...]
    bytes: int
    total: int
    """Of the whole lock, in bytes."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A resolution with the builds that were wanted, or those that could be had."""

    resolution: FoundLocks
    requirements: Requirements
    """Those that were locked, for another lock with something added."""
    locker: Locker
    adjustments: tuple[Adjustment, ...] = ()
    refusal: str = ""
    """Why PyTorch's CPU builds were not taken; empty where they were, or where none is needed."""
    carried: Mapping[Platform, Carried] = field(default_factory=dict)

    @property
    def told(self) -> str:
        """For a warning: what the images carry although CPU builds were wanted; empty where there is nothing to tell."""
        if not self.refusal or not any(one.packages for one in self.carried.values()):
            return ""
        sizes = [
            f"{platform}: {one.bytes / 1e6:,.0f} of {one.total / 1e6:,.0f} MB ({_few(one.packages)})"
            for platform, one in self.carried.items()
            if one.packages
        ]
        return (
            f"CPU builds of PyTorch can't be had ({self.refusal}), so images carry CUDA's libraries; {'; '.join(sizes)}"
        )


def carried(lock: Lock) -> Carried:
    """The packages of a lock that only GPUs use."""
    found = [wheel for wheel in lock.wheels if wheel.name.startswith(CUDA_PREFIXES) or wheel.name in CUDA_NAMES]
    return Carried(
        packages=tuple(wheel.name for wheel in found), bytes=sum(wheel.size or 0 for wheel in found), total=lock.bytes
    )


def choose(
    requirements: Requirements,
    accelerator: Accelerator,
    *,
    locker: Locker,
    platforms: Sequence[Platform],
    pythons: Sequence[PythonChoice],
    solve: Solve,
) -> Chosen:
    """Lock with the wanted builds; with the ordinary ones where those don't lock. Errors as `solve` gives them."""
    if accelerator is Accelerator.CUDA:
        chosen = Chosen(resolution=solve(requirements, locker), requirements=requirements, locker=locker)
    else:
        targets = [
            LockTarget(platform=platform, python=one.version, glibc=one.glibc)
            for one in pythons
            for platform in platforms
        ]
        chosen = _cpu(requirements, locker, targets, solve)
    locks = chosen.resolution.locks
    return replace(chosen, carried={platform: carried(lock) for platform, lock in locks.items()})


def _cpu(requirements: Requirements, locker: Locker, targets: Sequence[LockTarget], solve: Solve) -> Chosen:
    """PyTorch's packages may be named, or turn up in the lock: then it is made again."""
    direct = TORCH & {entry.name for entry in requirements.entries}
    hashed = any(entry.hashes for entry in requirements.entries if entry.name in TORCH)
    refusal = "the repository names the hashes of other builds" if hashed else ""
    if direct and not refusal:
        refusal = locker.cpu_refusal(targets[0])
    chosen = None
    if direct and not refusal:
        chosen, refusal = _with_torch(requirements, locker, direct, targets, solve)
    if chosen is None:
        chosen = _with_tensorflow(requirements, locker, targets, solve)
    names = TORCH & {name for lock in chosen.resolution.locks.values() for name in lock.versions}
    if names and not refusal and not (names <= direct):
        refusal = locker.cpu_refusal(targets[0])
        if not refusal:
            again, refusal = _with_torch(requirements, locker, names | direct, targets, solve)
            chosen = again or chosen
    return replace(chosen, refusal=refusal)


def _with_torch(
    requirements: Requirements, locker: Locker, names: Iterable[str], targets: Sequence[LockTarget], solve: Solve
) -> tuple[Chosen | None, str]:
    try:
        return _with_tensorflow(requirements, locker.for_cpu(names), targets, solve), ""
    except DependencyError as error:
        return None, f"they don't lock: {error.message:.200}"


def _with_tensorflow(requirements: Requirements, locker: Locker, targets: Sequence[LockTarget], solve: Solve) -> Chosen:
    """With `tensorflow-cpu` on x86-64 where all that `tensorflow` would be there is that."""
    swapped = _swapped(requirements, locker, targets)
    if swapped is not None:
        try:
            resolution = solve(swapped, locker)
        except DependencyError:
            pass  # the ordinary build may lock, and tells better what is wrong where it does not
        else:
            if _same_release(resolution):
                return Chosen(
                    resolution=resolution,
                    requirements=swapped,
                    locker=locker,
                    adjustments=tuple(
                        _adjustment(entry, resolution) for entry in requirements.entries if entry.name == TENSORFLOW
                    ),
                )
    return Chosen(resolution=solve(requirements, locker), requirements=requirements, locker=locker)


def _swapped(requirements: Requirements, locker: Locker, targets: Sequence[LockTarget]) -> Requirements | None:
    """The requirements with the CPU build; None where no TensorFlow is named, or it has no such build."""
    platforms = {target.platform for target in targets}
    named = [entry for entry in requirements.entries if entry.name == TENSORFLOW]
    if not named or Platform.LINUX_AMD64 not in platforms or any(entry.hashes for entry in named):
        return None
    on_amd64 = [target for target in targets if target.platform is Platform.LINUX_AMD64]
    if not all(any(_exists(entry, locker, target) for target in on_amd64) for entry in named):
        return None
    entries: list[Requirement] = []
    for entry in requirements.entries:
        if entry.name != TENSORFLOW:
            entries.append(entry)
            continue
        extras = tuple(extra for extra in entry.extras if extra != AND_CUDA)
        here = "" if len(platforms) == 1 else "platform_machine == 'x86_64'"
        entries.append(replace(entry, name=TENSORFLOW_CPU, extras=extras, marker=_both(entry.marker, here)))
        if len(platforms) > 1:
            entries.append(replace(entry, extras=extras, marker=_both(entry.marker, "platform_machine != 'x86_64'")))
    return replace(requirements, entries=tuple(entries))


def _exists(entry: Requirement, locker: Locker, target: LockTarget) -> bool:
    """Whether a version that the entry allows has a CPU build; remembered as long as a lock is."""
    wanted = f"{TENSORFLOW_CPU}{entry.specifier}"
    request = {"is there": wanted, "target": [target.python, target.uv_platform]}
    known = locker.recall(request)
    if not isinstance(known, bool):
        known = locker.probe(wanted, target=target) is not None
        locker.remember(request, known)
    return known


def _same_release(resolution: FoundLocks) -> bool:
    """Nothing was moved for the CPU build, nothing brings the other build beside it, and platforms have one version."""
    if any(one.package in {TENSORFLOW, TENSORFLOW_CPU} for one in resolution.adjustments):
        return False
    found = [
        {name: lock.versions[name] for name in (TENSORFLOW, TENSORFLOW_CPU) if name in lock.versions}
        for lock in resolution.locks.values()
    ]
    releases = {Version(version).public for versions in found for version in versions.values()}
    return len(releases) <= 1 and all(len(versions) <= 1 for versions in found)


def _adjustment(entry: Requirement, resolution: FoundLocks) -> Adjustment:
    version = resolution.locks[Platform.LINUX_AMD64].versions.get(TENSORFLOW_CPU, "")
    return Adjustment(
        code=CPU_BUILD,
        package=TENSORFLOW,
        before=f"{entry.name}{entry.specifier}",
        after=f"{TENSORFLOW_CPU}=={version}" if version else TENSORFLOW_CPU,
        where=entry.where,
        reason="the same release without CUDA's kernels; --accelerator cuda keeps them",
        platform=Platform.LINUX_AMD64.value,
    )


def _both(one: str, other: str) -> str:
    return f"({one}) and {other}" if one and other else one or other


def _few(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
