"""The records of one build, each written when it is about to travel."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from flops.builder.records.attach import Attachments
from flops.builder.records.history import build_record
from flops.builder.records.locks import locks_record
from flops.builder.records.provenance import Run, provenance_record
from flops.progress import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from flops.builder.records import Materials, Record
    from flops.builder.records.bills import Bills
    from flops.builder.records.history import History
    from flops.errors import Adjustment, Finding
    from flops.oci.signature import SigningKey


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What a build knows when its images are ready to be put in their place."""

    materials: Materials
    bills: Bills
    history: History
    seconds: Callable[[], Mapping[str, float]]
    moved: Mapping[str, int]
    adjustments: tuple[Adjustment, ...]
    findings: tuple[Finding, ...]

    def attachments(self, key: SigningKey | None) -> Attachments:
        return Attachments(
            make=self.records, created=self.materials.identity.time, refused=partial(_refused, self.history), key=key
        )

    def records(self, subjects: Mapping[str, str]) -> Iterator[Record]:
        """Locks, bill of materials, provenance, history; `subjects` are digests by name."""
        run = Run(identity=str(uuid.uuid4()), begun=self.history.begun, ended=datetime.now(UTC))
        yield build_record(
            self.history,
            run,
            self.materials.platforms,
            seconds=self.seconds(),
            moved=self.moved,
            adjustments=self.adjustments,
            findings=self.findings,
        )
        locks = locks_record(self.materials)
        yield locks
        yield provenance_record(self.materials, run, subjects, locks=locks)
        yield self.bills.record(self.materials)


def _refused(history: History, reason: str) -> None:
    history.warning(
        Stage.PUSH,
        f"the records of this build (locks, bill of materials, provenance) are not kept: {reason}",
        hint="the images are whole without them",
    )
