"""Which manifests have another one as their subject (distribution specification 1.1, "Listing Referrers").

Registries without that list have an index under a tag instead, which those who push keep ("Referrers Tag Schema").
"""

from __future__ import annotations

import threading
from collections import defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING

from flops.errors import BadImage, ManifestIncomplete, RegistryError, RegistryRefused
from flops.oci import listing
from flops.oci.artifacts import fallback_tag, parse_referrers, referrers_document
from flops.oci.authentication import pulling
from flops.oci.descriptor import INDEX

if TYPE_CHECKING:
    from collections.abc import Callable

    from flops.oci.descriptor import Descriptor
    from flops.oci.manifests import Manifests
    from flops.oci.transport import Session

#: Rounds of reading and writing an index that others write too.
_ROUNDS = 5
#: Answers of registries that have no such list.
_WITHOUT = {400, 404, 405}


class Referrers:
    """The requests; see RegistryClient for what they promise."""

    def __init__(self, session: Session, manifests: Manifests) -> None:
        self._session = session
        self._manifests = manifests
        self._locks: defaultdict[tuple[str, str], threading.Lock] = defaultdict(threading.Lock)

    def find(self, repository: str, subject: str, artifact_type: str | None) -> tuple[Descriptor, ...]:
        """By the registry's list, or by the tag's index where it has none."""
        listed = self._listed(repository, subject, artifact_type)
        found = self._tagged(repository, subject) if listed is None else listed
        distinct = {entry.digest: entry for entry in found}
        return tuple(entry for entry in distinct.values() if artifact_type in {None, entry.artifact_type})

    def add(self, repository: str, subject: str, *referrers: Descriptor) -> None:
        """Note manifests that were pushed in the tag's index."""
        digests = {referrer.digest for referrer in referrers}
        self._change(repository, subject, lambda entries: (*entries, *referrers), digests.issubset)

    def remove(self, repository: str, subject: str, digest: str) -> None:
        """Take a manifest that was deleted out of the tag's index, where there is one."""
        if any(entry.digest == digest for entry in self._tagged(repository, subject)):
            self._change(
                repository,
                subject,
                lambda entries: tuple(entry for entry in entries if entry.digest != digest),
                lambda digests: digest not in digests,
            )

    def _listed(self, repository: str, subject: str, artifact_type: str | None) -> list[Descriptor] | None:
        path = f"/v2/{repository}/referrers/{subject}"
        if artifact_type:
            path += f"?artifactType={artifact_type.replace('+', '%2B')}"
        found: list[Descriptor] = []
        for number, answer in enumerate(
            listing.pages(self._session, path, expect={200, *_WITHOUT}, scope=pulling(repository))
        ):
            if not answer.is_success and not number:
                return None
            try:
                found += parse_referrers(answer.content)
            except BadImage as error:
                if not number:  # a page of something else that answers to everything
                    return None
                raise RegistryRefused("the registry's list of referrers can't be read") from error
        return found

    def _tagged(self, repository: str, subject: str) -> tuple[Descriptor, ...]:
        found = self._manifests.get(repository, fallback_tag(subject))
        if found is None:
            return ()
        with suppress(BadImage):  # another tag of that name: nobody's list
            return parse_referrers(found.document)
        return ()

    def _change(
        self,
        repository: str,
        subject: str,
        change: Callable[[tuple[Descriptor, ...]], tuple[Descriptor, ...]],
        done: Callable[[set[str]], bool],
    ) -> None:
        """Read, change and write the index, until what is read holds the change: others may write at the same time."""
        with self._locks[repository, subject]:
            for _ in range(_ROUNDS):
                before = self._tagged(repository, subject)
                if done({entry.digest for entry in before}):
                    return
                entries, tag = change(before), fallback_tag(subject)
                try:
                    self._manifests.put(repository, tag, INDEX, referrers_document(entries))
                except ManifestIncomplete:  # some of them were removed, and the registry takes no list that names them
                    there = tuple(one for one in entries if self._manifests.get(repository, one.digest) is not None)
                    self._manifests.put(repository, tag, INDEX, referrers_document(there))
            if not done({entry.digest for entry in self._tagged(repository, subject)}):
                raise RegistryError(f"the referrers of {subject} in {repository} are written by others all the time")
