"""Every failure of the product: a stable code, an exit code, a message and a hint.

    FlopsError                     exit
    |-- UsageError                    2
    |-- SourceError                   3   checkout: URL, ref, limits, links
    |-- StructureError                4   the ML repository contract
    |-- DependencyError               5   requirements and locks
    |-- BuildError                    6   wheels, base, layers
    |-- RegistryError                 7   reaching, pushing, pulling
    |-- VerificationError             8   a proof about an image failed
    |-- OrchestratorError             9   containers and orchestrators
    |-- InternalError                70   a bug of ours
    `-- Cancelled                   130

Raised deep, caught once at the edge. A message says what and where, a hint what to do; neither ever holds the
content of a file or a credential.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, kw_only=True, order=True)
class Finding:
    """Something wrong in the repository, at a line (1-based; 0 where the whole file is meant)."""

    path: str
    """Relative to the repository (or its subdirectory), with forward slashes."""
    line: int
    code: str
    message: str
    hint: str = ""
    quote: str = field(default="", compare=False)
    """The line itself, as far as it may be shown."""

    @property
    def where(self) -> str:
        return f"{self.path}:{self.line}" if self.line else self.path

    def to_json(self) -> dict[str, Any]:
        document = {key: getattr(self, key) for key in ("code", "path", "line", "message", "hint")}
        return document | ({"quote": self.quote} if self.quote else {})


@dataclass(frozen=True, kw_only=True)
class Adjustment:
    """A change that the builder made to what the repository asked for; always reported."""

    code: str
    package: str
    before: str
    after: str
    path: str
    """The file, or the option `--python`."""
    line: int
    """1-based; 0 where the whole file is meant."""
    reason: str
    platform: str | None = None
    """None where it holds for every platform."""

    @property
    def where(self) -> str:
        return f"{self.path}:{self.line}" if self.line else self.path

    def to_json(self) -> dict[str, Any]:
        return {
            key: getattr(self, key) for key in ("code", "package", "before", "after", "where", "reason", "platform")
        }


class FlopsError(Exception):
    """Base of all failures: `code` is stable and documented, `exit_code` is what a command ends with."""

    code: ClassVar[str] = "INTERNAL"
    exit_code: ClassVar[int] = 70

    def __init__(self, message: str, *, hint: str = "", findings: Iterable[Finding] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.findings = tuple(findings)

    def to_json(self) -> dict[str, Any]:
        """The object under `error` that commands, events and the manager's API share."""
        return {
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "findings": [finding.to_json() for finding in self.findings],
        }


# --- 2: usage ---------------------------------------------------------------------------------------------------------
class UsageError(FlopsError):
    code, exit_code = "USAGE", 2


class UnknownPlatform(UsageError):
    code = "UNKNOWN_PLATFORM"


class BadTarget(UsageError):
    """A registry, repository or tag name that no registry could take."""

    code = "BAD_TARGET"


class BadSetting(UsageError):
    code = "BAD_SETTING"


class BadKey(UsageError):
    """A file of a key that can't be used for signatures."""

    code = "BAD_KEY"


class SlaInvalid(UsageError):
    """An SLA that can't be accepted; `findings` holds every place, with its JSON pointer (RFC 6901) as path."""

    code = "SLA_INVALID"


class KeyReused(UsageError):
    """An idempotency key that stands for another request already."""

    code = "IDEMPOTENCY_KEY_REUSED"


# --- 3: source --------------------------------------------------------------------------------------------------------
class SourceError(FlopsError):
    code, exit_code = "SOURCE", 3


class BadUrl(SourceError):
    code = "BAD_URL"


class BlockedAddress(SourceError):
    code = "BLOCKED_ADDRESS"


class CredentialInUrl(SourceError):
    code = "CREDENTIAL_IN_URL"


class BadRef(SourceError):
    code = "BAD_REF"


class RefNotFound(SourceError):
    code = "REF_NOT_FOUND"


class CloneFailed(SourceError):
    """The repository can't be reached or read."""

    code = "CLONE_FAILED"


class CloneAuth(CloneFailed):
    code = "CLONE_AUTH"


class CloneTimeout(CloneFailed):
    code = "CLONE_TIMEOUT"


class CloneRedirect(SourceError):
    code = "CLONE_REDIRECT"


class CloneFsck(SourceError):
    """Git's own object check refused what the server sent."""

    code = "CLONE_FSCK"


class SubdirNotFound(SourceError):
    code = "SUBDIR_NOT_FOUND"


class EmptyRepo(SourceError):
    code = "EMPTY_REPO"


class RepositoryLink(SourceError):
    """A symbolic link that leaves the repository, or stands where a file of the contract is expected."""

    code = "SYMLINK"


class LfsUnsupported(SourceError):
    code = "LFS_UNSUPPORTED"


class RepositoryLimit(SourceError):
    """Too many bytes, files or directory levels."""

    code = "LIMIT_REPO"


class FileLimit(SourceError):
    code = "LIMIT_FILE"


class SecretFound(SourceError):
    """Likely secrets (`.env`, private keys) that would end up in an image."""

    code = "SECRET_FOUND"


# --- 4: structure -----------------------------------------------------------------------------------------------------
class StructureError(FlopsError):
    """The repository breaks the ML repository contract; `findings` holds every place."""

    code, exit_code = "STRUCTURE", 4


# --- 5: dependencies --------------------------------------------------------------------------------------------------
class DependencyError(FlopsError):
    code, exit_code = "DEPENDENCIES", 5
    repairs: tuple[Adjustment, ...] = ()
    """Changes of the repository's file with which every requested platform locks; empty where none was found."""


class RequirementsMissing(DependencyError):
    code = "REQUIREMENTS_MISSING"


class RequirementSyntax(DependencyError):
    """A dependency file or a line of it can't be read; `findings` holds every place."""

    code = "REQUIREMENT_SYNTAX"


class RequirementForbidden(DependencyError):
    """Paths, URLs, options and variables in a dependency file; `findings` holds every place."""

    code = "REQUIREMENT_FORBIDDEN"


class NeedsBuild(DependencyError):
    code = "NEEDS_BUILD"


class PythonUnavailable(DependencyError):
    """No provider has a Python that the repository's pins allow."""

    code = "PYTHON_UNAVAILABLE"


class PackageNotFound(DependencyError):
    code = "PACKAGE_NOT_FOUND"


class VersionNotFound(DependencyError):
    """No version that a requirement allows was ever published."""

    code = "VERSION_NOT_FOUND"


class Yanked(DependencyError):
    """All versions that a requirement allows were withdrawn by their authors."""

    code = "YANKED"


class RequiresPython(DependencyError):
    """A package itself excludes the Python that is used."""

    code = "REQUIRES_PYTHON"


class NoWheel(DependencyError):
    """No wheel for the platform."""

    code = "NO_WHEEL"


class NoWheelForPython(NoWheel):
    """Wheels for the platform, but for other versions of Python."""

    code = "NO_WHEEL_PYTHON"


class SdistOnly(NoWheel):
    """Nothing but sources, which would have to be built."""

    code = "SDIST_ONLY"


class Unresolvable(DependencyError):
    """The requirements contradict each other."""

    code = "RESOLVE"


class ImportMissing(DependencyError):
    """The code imports what no required package provides."""

    code = "IMPORT_MISSING"


class LockTimeout(DependencyError):
    code = "LOCK_TIMEOUT"


class IndexUnreachable(DependencyError):
    """The package index does not answer: never the repository's fault."""

    code = "INDEX_UNREACHABLE"


class WheelHash(DependencyError):
    code = "WHEEL_HASH"


# --- 6: build ---------------------------------------------------------------------------------------------------------
class BuildError(FlopsError):
    code, exit_code = "BUILD", 6


class WheelUnsafe(BuildError):
    code = "WHEEL_UNSAFE"


class WheelRecord(BuildError):
    code = "WHEEL_RECORD"


class WheelBomb(BuildError):
    code = "WHEEL_BOMB"


class LayerUnsafe(BuildError):
    """A path or mode that the layer writer refuses."""

    code = "LAYER_UNSAFE"


class LayerConflict(BuildError):
    code = "LAYER_CONFLICT"


class BaseUnavailable(BuildError):
    """No base file system can be had: no apt, no mirror, no such image."""

    code = "BASE_UNAVAILABLE"


class BaseUnsuitable(BuildError):
    """A base image that lacks glibc, Python or the platform."""

    code = "BASE_UNSUITABLE"


class ToolMissing(BuildError):
    """A program that the builder needs (git, apt-get, uv) is not on this machine."""

    code = "TOOL_MISSING"


class ToolFailed(BuildError):
    """A program ended in a way that its caller has no better name for."""

    code = "TOOL_FAILED"


class ToolTimeout(BuildError):
    code = "TOOL_TIMEOUT"


class DiskFull(BuildError):
    code = "DISK_FULL"


class OutputError(BuildError):
    """The place named by --output can't be written."""

    code = "OUTPUT"


# --- 7: registry ------------------------------------------------------------------------------------------------------
class RegistryError(FlopsError):
    code, exit_code = "REGISTRY", 7


class RegistryUnreachable(RegistryError):
    code = "REGISTRY_UNREACHABLE"


class RegistryAuth(RegistryError):
    code = "REGISTRY_AUTH"


class AuthRealm(RegistryError):
    """A registry sends its clients' credentials to another host."""

    code = "AUTH_REALM"


class RegistryRefused(RegistryError):
    """The registry answered and said no."""

    code = "REGISTRY_REFUSED"


class ManifestIncomplete(RegistryRefused):
    """A manifest was refused since the registry does not hold what it names."""

    code = "MANIFEST_INCOMPLETE"


class DeletesUnsupported(RegistryRefused):
    """The registry deletes nothing, or no tags."""

    code = "REGISTRY_DELETES"


class RecordUnusable(RegistryError):
    """What the registry recorded of a layer is not what its bytes say; a build then goes on without records."""

    code = "RECORD_UNUSABLE"


class RegistryTooLarge(RegistryError):
    code = "REGISTRY_TOO_LARGE"


class RegistryDigest(RegistryError):
    """What the registry holds is not what was sent."""

    code = "REGISTRY_DIGEST"


class ImageNotFound(RegistryError):
    code = "IMAGE_NOT_FOUND"


class BadImage(RegistryError):
    """An index, manifest, config or digest that can't be read, or a blob that is not what its digest says."""

    code = "BAD_IMAGE"


# --- 8, 9, 70, 130 ----------------------------------------------------------------------------------------------------
class VerificationError(FlopsError):
    code, exit_code = "VERIFY", 8


class ImagesUnproven(VerificationError):
    """A builder reported success, and the registry does not hold the images that it had asked to name."""

    code = "IMAGES_UNPROVEN"


class NotSigned(VerificationError):
    """No signature by the given key."""

    code = "NOT_SIGNED"


class OrchestratorError(FlopsError):
    code, exit_code = "ORCHESTRATOR", 9


class EngineMissing(OrchestratorError):
    """No container engine (podman or docker) that could run or load an image."""

    code = "ENGINE_MISSING"


class EngineFailed(OrchestratorError):
    code = "ENGINE_FAILED"


class TrainingFailed(OrchestratorError):
    """A local federation (`flops try`) did not reach its last round."""

    code = "TRAINING_FAILED"


class OrchestratorUnreachable(OrchestratorError):
    """What runs the builders does not answer, or not in a way that can be understood."""

    code = "ORCHESTRATOR_UNREACHABLE"


class OrchestratorAuth(OrchestratorError):
    code = "ORCHESTRATOR_AUTH"


class DeployFailed(OrchestratorError):
    """The orchestrator took the builder and could not start it."""

    code = "DEPLOY_FAILED"


class NoCapacity(DeployFailed):
    code = "NO_CAPACITY"


class BuilderLost(OrchestratorError):
    """The builder ended without a word, and the registry does not prove that its images are there."""

    code = "BUILDER_LOST"


class BuilderOom(BuilderLost):
    """The builder was killed (exit 137) and it may be for its memory, or memory ran out within it."""

    code = "OOM_KILLED"


class DeadlineExceeded(OrchestratorError):
    """The project was not done within its time."""

    code = "DEADLINE_EXCEEDED"


class ManagerUnreachable(OrchestratorError):
    code = "MANAGER_UNREACHABLE"


class ManagerRefused(OrchestratorError):
    """The manager answered in a way that its contract does not know."""

    code = "MANAGER_REFUSED"


class BrokerUnreachable(OrchestratorError):
    """An MQTT broker that does not take, or does not acknowledge, what is published."""

    code = "BROKER_UNREACHABLE"


class AccessDenied(OrchestratorError):
    """No token, a wrong one, or a request from another origin."""

    code = "ACCESS_DENIED"


class LoginThrottled(AccessDenied):
    """Too many wrong tokens came from one address."""

    code = "LOGIN_THROTTLED"

    seconds = 0
    """Until the next try is answered."""


class ProjectNotFound(OrchestratorError):
    code = "PROJECT_NOT_FOUND"


class ProjectDecided(OrchestratorError):
    """Too late to cancel: the tags move already, or the project has ended."""

    code = "PROJECT_DECIDED"


class AttemptOver(OrchestratorError):
    """This attempt is not wanted any more; its builder stops at once."""

    code = "ATTEMPT_OVER"


class TooMany(OrchestratorError):
    """More projects, events or bytes than the manager takes."""

    code = "TOO_MANY"


class AttemptLimit(TooMany):
    """A builder reported more events, or more bytes of them, than one attempt may."""

    code = "ATTEMPT_LIMIT"


class CredentialUnknown(OrchestratorError):
    """A name that no setting of the operator knows, or a credential for another host."""

    code = "CREDENTIAL_UNKNOWN"


class StoreError(OrchestratorError):
    """The manager's database can't be used."""

    code = "STORE"


class InternalError(FlopsError):
    """A bug of ours."""

    code, exit_code = "INTERNAL", 70


class Cancelled(FlopsError):
    code, exit_code = "CANCELLED", 130
