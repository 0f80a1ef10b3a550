"""The orchestrator that the settings name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flops.errors import BadSetting
from flops.manager.orchestrators.local import LocalOrchestrator

if TYPE_CHECKING:
    from flops.manager.orchestrators import Orchestrator
    from flops.settings import Settings


def chosen(settings: Settings, *, advertise: str, registry: str) -> Orchestrator:
    """`advertise` and `registry` as they are by now, embedded ones included. BadSetting where a part is not named."""
    if settings.orchestrator == "local":
        return LocalOrchestrator(settings.data_dir / "builders", keep_days=settings.keep_days)
    # of use to few, and httpx is slow to import
    from flops.manager.orchestrators.oakestra import OakestraOrchestrator  # noqa: PLC0415
    from flops.manager.orchestrators.oakestra_addresses import Addresses  # noqa: PLC0415
    from flops.manager.orchestrators.oakestra_api import OakestraApi  # noqa: PLC0415

    if not settings.oakestra_url or settings.oakestra_password is None or not settings.builder_image:
        raise BadSetting(
            "the orchestrator oakestra needs its address, a password and a builder image",
            hint="set FLOPS_OAKESTRA_URL, FLOPS_OAKESTRA_PASSWORD and FLOPS_BUILDER_IMAGE",
        )
    api = OakestraApi(
        settings.oakestra_url,
        username=settings.oakestra_username,
        password=settings.oakestra_password.get_secret_value(),
        authorities=settings.ca_bundle,
    )
    addresses = Addresses(
        manager=advertise, registry=registry, registry_pull=settings.registry_pull, image=settings.builder_image
    )
    return OakestraOrchestrator(api, addresses)
