"""The SLA: the JSON document that requests a project, read once into values. Pure.

FLOps' own keys, and further ones of ours that a recipe has beyond them. Everything that is wrong is told at once, each with
its JSON pointer (RFC 6901); unknown keys and those that change nothing here are told as warnings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from packaging.utils import canonicalize_name

from flops.errors import BadRef, CredentialUnknown, FlopsError, SlaInvalid
from flops.oci.reference import Reference, Registry
from flops.platforms import Platform
from flops.recipe import Accelerator, Compression, Flavor, Policy, Recipe
from flops.service.manager_settings import BaseImages
from flops.service.sla_fields import Fields

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flops.service.named_credentials import CredentialNames

URL_LIMIT = 2048
NAME_LIMIT = 255
LIST_LIMIT = 100
COUNT_LIMIT = 1_000_000
PYTHON = re.compile(r"3\.[0-9]{1,2}(\.[0-9]{1,2})?")
GROUP = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_URL_HINT = "write the repository's URL, https://HOST/OWNER/REPOSITORY"
SUBDIR = re.compile(r"[^\x00-\x1f\x7f-\x9f:\\]*")


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the federation is to be run: kept for whoever runs it."""

    mode: str
    data_tags: tuple[str, ...]
    training_cycles: int
    training_rounds: int
    min_available_clients: int
    min_fit_clients: int
    min_evaluate_clients: int


@dataclass(frozen=True, kw_only=True)
class Sla:
    """A request as it was understood, with defaults filled in."""

    customer: str
    verbose: bool
    url: str
    """As it was written; `lookup.SourceLookup` judges it."""
    ref: str | None
    subdir: str
    flavor: Flavor | None
    platforms: tuple[Platform, ...]
    python: str | None
    policy: Policy
    accelerator: Accelerator
    compression: Compression
    base_image: str | None
    groups: tuple[str, ...]
    git_credential: str | None
    registry_credential: str | None
    training: Training
    post_training_steps: tuple[str, ...]
    resources: dict[str, int]
    """memory and storage in MB, vcpus: for the actors."""
    warnings: tuple[str, ...] = field(default=(), compare=False)

    @property
    def recipe(self) -> Recipe:
        return recipe_of(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """An SLA again, which `parse_sla` reads as the same."""
        training = self.training
        return {
            "customerID": self.customer,
            "verbose": self.verbose,
            "ml_repo_url": self.url,
            "ml_repo_ref": self.ref,
            "ml_repo_subdir": self.subdir,
            "ml_model_flavor": self.flavor.value if self.flavor else None,
            "supported_platforms": [platform.value for platform in self.platforms],
            "python": self.python,
            "policy": self.policy.value,
            "accelerator": self.accelerator.value,
            "compression": self.compression.value,
            "base_image": self.base_image,
            "groups": list(self.groups),
            "git_credential": self.git_credential,
            "registry_credential": self.registry_credential,
            "training_configuration": {
                "mode": training.mode,
                "data_tags": list(training.data_tags),
                "training_cycles": training.training_cycles,
                "training_rounds": training.training_rounds,
                "min_available_clients": training.min_available_clients,
                "min_fit_clients": training.min_fit_clients,
                "min_evaluate_clients": training.min_evaluate_clients,
            },
            "post_training_steps": list(self.post_training_steps),
            "resource_constraints": dict(self.resources),
        }


def recipe_of(document: Mapping[str, Any]) -> Recipe:
    """The recipe that an SLA asks for which was read and written (`Sla.to_json`)."""
    return Recipe(
        flavor=Flavor(document["ml_model_flavor"]) if document["ml_model_flavor"] else None,
        python=document["python"],
        policy=Policy(document["policy"]),
        accelerator=Accelerator(document["accelerator"]),
        compression=Compression(document["compression"]),
        base=document["base_image"],
        subdir=document["ml_repo_subdir"],
        groups=tuple(document["groups"]),
    )


def parse_sla(
    document: object,
    *,
    names: CredentialNames,
    registry: str | None = None,
    bases: BaseImages | None = None,
    judge: Callable[[Sla], object] = lambda _sla: None,
) -> Sla:
    """Read a request. SlaInvalid holds every place that is wrong; CredentialUnknown where only a credential's name is.

    `names` are the operator's credentials; one for the registry must be for the host of `registry`. `bases` are the base
    images that the operator lists. `judge` raises an error for a source that may not be built; that is raised, with its
    place, where nothing else is wrong.
    """
    top = Fields.of(document)
    if top.findings:  # no object, so nothing is to be said about its keys
        raise _refusal(top)
    sla = Sla(
        customer=top.text("customerID", limit=NAME_LIMIT) or "Admin",
        verbose=top.flag("verbose"),
        url=top.text("ml_repo_url", limit=URL_LIMIT, required=True, hint=_URL_HINT) or "",
        ref=top.text("ml_repo_ref", limit=NAME_LIMIT),
        subdir=_subdir(top),
        flavor=top.choice("ml_model_flavor", Flavor, None),
        platforms=_platforms(top),
        python=top.text("python", pattern=PYTHON, hint='write a text such as "3.11" or "3.11.4"'),
        policy=top.choice("policy", Policy, Policy.FIX),
        accelerator=top.choice("accelerator", Accelerator, Accelerator.CPU),
        compression=top.choice("compression", Compression, Compression.GZIP),
        base_image=_base_image(top, bases or BaseImages()),
        groups=tuple(
            sorted({canonicalize_name(name) for name in top.texts("groups", limit=LIST_LIMIT, pattern=GROUP)})
        ),
        git_credential=top.text("git_credential", limit=NAME_LIMIT),
        registry_credential=top.text("registry_credential", limit=NAME_LIMIT),
        training=_training(top.section("training_configuration")),
        post_training_steps=top.texts("post_training_steps", limit=LIST_LIMIT),
        resources=_resources(top.section("resource_constraints")),
    )
    if top.flag("use_devel_base_images"):
        top.warn("use_devel_base_images", "is ignored: there are no base images for development here")
    if sla.post_training_steps:
        top.warn("post_training_steps", "is kept and not acted on: images of trained models are not built here")
    if sla.training.mode == "hierarchical":
        top.warn(
            "training_configuration/mode",
            "is hierarchical: the images are built, but a root or cluster aggregator ends when it is started",
        )
    _check_credentials(top, sla, names, registry)
    refused = _check_source(top, sla, judge) if sla.url else None
    if top.findings:
        raise _refusal(top, refused) from refused
    return replace(sla, warnings=top.all_warnings())


def _refusal(top: Fields, source: FlopsError | None = None) -> FlopsError:
    """With all that is wrong; the hint also tells what would be ignored, which may be a key that is misspelt."""
    findings, first = top.findings, top.findings[0]
    hint = "\n".join(filter(None, (first.hint, *(f"note: {told}" for told in top.all_warnings()))))
    if source is not None and len(findings) == 1:
        return type(source)(source.message, hint=hint, findings=findings)
    kind: type[FlopsError] = SlaInvalid
    if all(finding.code == CredentialUnknown.code for finding in findings):
        kind = CredentialUnknown
    count = f"{len(findings)} places" if len(findings) > 1 else "one place"
    return kind(
        f"the SLA can't be accepted: {count}; {first.path or 'the document'} {first.message}",
        hint=hint,
        findings=findings,
    )


def _subdir(top: Fields) -> str:
    text = top.text("ml_repo_subdir", limit=NAME_LIMIT, pattern=SUBDIR, hint="write a path below the repository's root")
    names = [name for name in (text or "").split("/") if name not in ("", ".")]
    if ".." in names:
        top.find("ml_repo_subdir", "leaves the repository", "write a path below its root, without '..'")
    return "/".join(names)


def _platforms(top: Fields) -> tuple[Platform, ...]:
    found: set[Platform] = set()
    names = top.texts("supported_platforms", limit=LIST_LIMIT, default=(Platform.LINUX_AMD64.value,), least=1)
    for number, name in enumerate(names):
        try:
            found.add(Platform.parse(name))
        except FlopsError as error:
            top.find(f"supported_platforms/{number}", f"is an {error.message}", error.hint)
    return tuple(sorted(found))


def _base_image(top: Fields, bases: BaseImages) -> str | None:
    text = top.text("base_image", limit=NAME_LIMIT)
    if text is not None:
        try:
            if not bases.allow(Reference.parse(text)):
                listed = f"write one of these: {bases.text}" if bases.text else "leave it out"
                top.find(
                    "base_image",
                    "is none that projects may use here",
                    f"{listed}; the operator lists them in FLOPS_BASE_IMAGES",
                )
        except FlopsError as error:
            top.find("base_image", f"is no image: {error.message}", error.hint)
    return text


def _training(fields: Fields) -> Training:
    return Training(
        mode=fields.one_of("mode", ("classic", "hierarchical"), "classic"),
        data_tags=fields.texts("data_tags", limit=LIST_LIMIT),
        training_cycles=fields.number("training_cycles", 1, least=1, most=COUNT_LIMIT),
        training_rounds=fields.number("training_rounds", 1, least=1, most=COUNT_LIMIT),
        min_available_clients=fields.number("min_available_clients", 1, least=1, most=COUNT_LIMIT),
        min_fit_clients=fields.number("min_fit_clients", 1, least=1, most=COUNT_LIMIT),
        min_evaluate_clients=fields.number("min_evaluate_clients", 1, least=1, most=COUNT_LIMIT),
    )


def _resources(fields: Fields) -> dict[str, int]:
    return {name: fields.number(name, 0, least=0, most=1_000_000_000) for name in ("memory", "vcpus", "storage")}


def _check_source(top: Fields, sla: Sla, judge: Callable[[Sla], object]) -> FlopsError | None:
    """What is wrong with it, which is a finding then."""
    try:
        judge(sla)
    except FlopsError as error:
        key = "ml_repo_ref" if isinstance(error, BadRef) else "ml_repo_url"
        top.find(key, f"can't be used: {error.message}", error.hint, code=error.code)
        return error
    return None


def _check_credentials(top: Fields, sla: Sla, names: CredentialNames, registry: str | None) -> None:
    """A credential goes to its own host only, so a name that stands for another host's is as good as none."""
    host = sla.url.partition("://")[2].partition("/")[0].rpartition("@")[2]
    for key, name, known, wanted in (
        ("git_credential", sla.git_credential, names.git, host),
        (
            "registry_credential",
            sla.registry_credential,
            names.registry,
            Registry.parse(registry).host if registry else "",
        ),
    ):
        if name is None:
            continue
        try:
            known.find(name, wanted)
        except CredentialUnknown as error:
            top.find(key, f"can't be used: {error.message}", error.hint, code=CredentialUnknown.code)
