"""Two builders of different platforms at one registry, ours and docker's: in chosen orders, and as they come."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from tests.integration.test_registries import server
from tests.unit.test_concurrent_tags import check_whole, pause, together
from tests.unit.test_publish import AMD64, ARM64, delivery, store

from flops.oci.blobs import BlobStore
from flops.oci.client import RegistryClient
from flops.publishing.registry_target import RegistryTarget

pytestmark = pytest.mark.integration
__all__ = ["server", "store"]

#: Races that nobody steers.
RACES = 20


@pytest.mark.parametrize("step", [2, 4, 5, 7, 8])
def test_no_platform_is_lost_where_one_is_paused(server, store: BlobStore, step):
    one, other = delivery(store, AMD64), delivery(store, ARM64)
    together(server.registry, pause(step), {"a": one, "b": other})
    with RegistryClient(server.registry) as client:
        check_whole(client, one, other)


def test_no_platform_is_lost_where_both_begin_at_once(server, store: BlobStore):
    one, other = delivery(store, AMD64), delivery(store, ARM64)
    for number in range(RACES):
        registry = replace(server.registry, prefix=f"race{number}")
        barrier = threading.Barrier(2)

        def publish(what, registry=registry, barrier=barrier):
            with RegistryClient(registry) as client:
                barrier.wait(30)
                RegistryTarget(client).publish(what)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(publish, (one, other)))
        with RegistryClient(registry) as client:
            check_whole(client, one, other)
