"""CPU or GPU: which builds of PyTorch and TensorFlow are locked, and what CUDA packages an image would contain.

Learners train on any node that they are sent to, so the default is `cpu`. PyTorch has CPU builds of the same version on an
index of its own. TensorFlow has them on the ordinary index as `tensorflow-cpu`, for x86-64 only: the same release with the
same modules, so it replaces `tensorflow` there, unless a locked package requires that one by name.
Where no CPU build is available, the ordinary one is used, and a warning gives its size before it is fetched.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flops.errors import Adjustment, DependencyError
from flops.locking.pylock import LockTarget
from flops.platforms import Platform
from flops.recipe import Accelerator
from flops.repair.pins import same_release

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from flops.formats.requirement import Requirement
    from flops.formats.requirements import Requirements
    from flops.locking.lock import Lock, Locker
    from flops.repair.doctor import FoundLocks, LockRequest

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
#: Packages that a warning names.
SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class CudaPackages:
    """The packages of a lock that only GPUs use."""

    packages: tuple[str, ...]
    bytes: int
    total: int
    """Bytes of the whole lock."""

    @classmethod
    def of(cls, lock: Lock) -> CudaPackages:
        found = [wheel for wheel in lock.wheels if wheel.name.startswith(CUDA_PREFIXES) or wheel.name in CUDA_NAMES]
        size = sum(wheel.size or 0 for wheel in found)
        return cls(packages=tuple(wheel.name for wheel in found), bytes=size, total=lock.bytes)


@dataclass(frozen=True, kw_only=True)
class AcceleratorChoice:
    """Locks with the requested builds, or with those that are available."""

    found: FoundLocks
    requirements: Requirements
    """Those that were locked, for another lock with something added."""
    locker: Locker
    adjustments: tuple[Adjustment, ...] = ()
    cpu_refusal: str = ""
    """Why PyTorch's CPU builds are not used; empty where they are, or where none are needed."""

    @property
    def cuda(self) -> dict[Platform, CudaPackages]:
        return {platform: CudaPackages.of(lock) for platform, lock in self.found.locks.items()}

    @property
    def warning(self) -> str:
        """What the images contain although CPU builds are requested; empty where that is nothing."""
        sizes = [
            f"{platform}: {one.bytes / 1e6:,.0f} of {one.total / 1e6:,.0f} MB ({_first(one.packages)})"
            for platform, one in self.cuda.items()
            if one.packages
        ]
        if not self.cpu_refusal or not sizes:
            return ""
        return (
            f"CPU builds of PyTorch are not available ({self.cpu_refusal}), so images contain CUDA's libraries; "
            f"{'; '.join(sizes)}"
        )


def choose(requirements: Requirements, request: LockRequest, *, locker: Locker, solve: Solve) -> AcceleratorChoice:
    """Lock with the requested builds, or with the ordinary ones where those don't lock. Errors as `solve`."""
    if request.recipe.accelerator is Accelerator.CUDA:
        return AcceleratorChoice(found=solve(requirements, locker), requirements=requirements, locker=locker)
    targets = [
        LockTarget(platform=platform, python=one.version, glibc=one.glibc)
        for one in request.pythons
        for platform in request.platforms
    ]
    return _with_cpu_builds(requirements, locker, targets, solve)


def _with_cpu_builds(
    requirements: Requirements, locker: Locker, targets: Sequence[LockTarget], solve: Solve
) -> AcceleratorChoice:
    """Where PyTorch's packages are not required but get into the lock through others, the lock is made again."""
    required = TORCH & {entry.name for entry in requirements.entries}
    hashed = any(entry.hashes for entry in requirements.entries if entry.name in TORCH)
    refusal = "the repository names the hashes of other builds" if hashed else ""
    if required and not refusal:
        refusal = locker.cpu_refusal(targets[0])
    choice = None
    if required and not refusal:
        choice, refusal = _with_torch(requirements, locker, required, targets, solve)
    if choice is None:
        choice = _with_tensorflow(requirements, locker, targets, solve)
    names = TORCH & {name for lock in choice.found.locks.values() for name in lock.versions}
    if names and not refusal and not (names <= required):
        refusal = locker.cpu_refusal(targets[0])
        if not refusal:
            again, refusal = _with_torch(requirements, locker, names | required, targets, solve)
            choice = again or choice
    return replace(choice, cpu_refusal=refusal)


def _with_torch(
    requirements: Requirements, locker: Locker, names: Iterable[str], targets: Sequence[LockTarget], solve: Solve
) -> tuple[AcceleratorChoice | None, str]:
    """The choice with these packages from PyTorch's index, or why there is none."""
    try:
        return _with_tensorflow(requirements, locker.for_cpu(names), targets, solve), ""
    except DependencyError as error:
        return None, f"they don't lock: {error.message:.200}"


def _with_tensorflow(
    requirements: Requirements, locker: Locker, targets: Sequence[LockTarget], solve: Solve
) -> AcceleratorChoice:
    """With `tensorflow-cpu` on x86-64 if it is available and changes nothing else."""
    swapped = _swapped(requirements, locker, targets)
    if swapped is not None:
        try:
            found = solve(swapped, locker)
        except DependencyError:
            pass  # the ordinary build may lock, and its error says better what is wrong
        else:
            if _only_build_differs(found):
                adjustments = tuple(
                    _adjustment(entry, found) for entry in requirements.entries if entry.name == TENSORFLOW
                )
                return AcceleratorChoice(found=found, requirements=swapped, locker=locker, adjustments=adjustments)
    return AcceleratorChoice(found=solve(requirements, locker), requirements=requirements, locker=locker)


def _swapped(requirements: Requirements, locker: Locker, targets: Sequence[LockTarget]) -> Requirements | None:
    """The requirements with the CPU build; None where TensorFlow is not required, or has no such build."""
    platforms = {target.platform for target in targets}
    on_amd64 = [target for target in targets if target.platform is Platform.LINUX_AMD64]
    named = [entry for entry in requirements.entries if entry.name == TENSORFLOW]
    if not named or not on_amd64 or any(entry.hashes for entry in named):
        return None
    if not all(any(_has_cpu_build(entry, locker, target) for target in on_amd64) for entry in named):
        return None
    entries: list[Requirement] = []
    for entry in requirements.entries:
        if entry.name != TENSORFLOW:
            entries.append(entry)
            continue
        entry = replace(entry, extras=tuple(extra for extra in entry.extras if extra != AND_CUDA))  # noqa: PLW2901
        if len(platforms) == 1:
            entries.append(replace(entry, name=TENSORFLOW_CPU))
        else:
            marker = f"({entry.marker}) and " if entry.marker else ""
            for name, sign in ((TENSORFLOW_CPU, "=="), (TENSORFLOW, "!=")):
                entries.append(replace(entry, name=name, marker=f"{marker}platform_machine {sign} 'x86_64'"))
    return replace(requirements, entries=tuple(entries))


def _has_cpu_build(entry: Requirement, locker: Locker, target: LockTarget) -> bool:
    """Whether a version that the entry allows has a CPU build; remembered as long as a lock."""
    wanted = f"{TENSORFLOW_CPU}{entry.specifier}"
    request = {"is there": wanted, "target": [target.python, target.uv_platform]}
    known = locker.recall(request)
    if not isinstance(known, bool):
        known = locker.probe(wanted, target=target) is not None
        locker.remember(request, known)
    return known


def _only_build_differs(found: FoundLocks) -> bool:
    """Whether nothing was moved for the CPU build, no platform has both builds, and all platforms have one release."""
    if any(one.package in {TENSORFLOW, TENSORFLOW_CPU} for one in found.adjustments):
        return False
    builds = [
        [lock.versions[name] for name in (TENSORFLOW, TENSORFLOW_CPU) if name in lock.versions]
        for lock in found.locks.values()
    ]
    return all(len(versions) <= 1 for versions in builds) and same_release(*(one for own in builds for one in own))


def _adjustment(entry: Requirement, found: FoundLocks) -> Adjustment:
    version = found.locks[Platform.LINUX_AMD64].versions.get(TENSORFLOW_CPU, "")
    return entry.adjustment(
        CPU_BUILD,
        before=f"{entry.name}{entry.specifier}",
        after=f"{TENSORFLOW_CPU}=={version}" if version else TENSORFLOW_CPU,
        reason="the same release without CUDA's kernels; --accelerator cuda keeps them",
        platform=Platform.LINUX_AMD64.value,
    )


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
