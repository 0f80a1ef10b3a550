"""What Oakestra says of a service, in the words of the protocol. Pure.

A failed one-shot is started again for ever, so each sign of a death is final: DEAD and FAILED, a second instance, and an
instance that waits although it has been running.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from flops.manager.orchestrators import Phase, Status

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Never placed, and nobody tries again.
NO_CAPACITY = frozenset(
    {
        "NoActiveClusterWithCapacity",
        "TargetClusterNotActive",
        "TargetClusterNotFound",
        "TargetClusterNoCapacity",
        "NO_WORKER_CAPACITY",
        "NO_QUALIFIED_WORKER_FOUND",
        "NO_NODE_FOUND",
    }
)
_RUNNING = frozenset({"RUNNING", "ACTIVE"})
_BEFORE_A_NODE = frozenset({"", "REQUESTED", "CLUSTER_SCHEDULED"})
_WAITING = _BEFORE_A_NODE | {"NODE_SCHEDULED", "CREATING", "CREATED"}
#: Whoever starts a container says so in one way or another.
_EXIT_CODE = re.compile(r"exit(?:ed)?(?: with)?(?: code| status)?[ :=(]*(\d{1,3})\b", re.IGNORECASE)


def instances(service: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = service.get("instance_list")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def asked(service: Mapping[str, Any]) -> bool:
    """Whether an instance was asked for already: asking again would start another one."""
    return bool(instances(service) or service.get("status"))


def judge(service: Mapping[str, Any], *, ran: bool) -> Status:
    """How a builder stands. `ran`: it was seen running before."""
    listed = instances(service)
    newest = max(listed, key=_number, default={})
    word = str(newest.get("status") or service.get("status") or "")
    detail = str(newest.get("status_detail") or service.get("status_detail") or "")
    reason = f"{word}: {detail}" if detail else word
    ended = _ended(word, detail, reason, ran=ran)
    if ended is not None:
        return ended
    if _number(newest) > 0 or (ran and listed and word in _WAITING):
        return Status(phase=Phase.ENDED, reason=f"it died and was started again ({reason})")
    if not listed and word not in _BEFORE_A_NODE:
        return Status(phase=Phase.GONE, reason=f"its instance was taken away ({reason})", evicted=True)
    return Status(phase=Phase.RUNNING if word in _RUNNING else Phase.WAITING, reason=reason)


def _ended(word: str, detail: str, reason: str, *, ran: bool) -> Status | None:
    match word:
        case "COMPLETED":
            return Status(phase=Phase.ENDED, exit_code=0, reason=reason)
        case "FAILED":
            return Status(phase=Phase.ENDED, reason=reason, failed=not ran)
        case "DEAD":
            return Status(phase=Phase.ENDED, exit_code=_exit_code(detail), reason=reason)
        case _ if word in NO_CAPACITY:
            return Status(phase=Phase.ENDED, reason=reason, failed=not ran, no_capacity=not ran)
        case _:
            return None


def _number(instance: Mapping[str, Any]) -> int:
    value = instance.get("instance_number")
    return value if isinstance(value, int) else 0


def _exit_code(detail: str) -> int | None:
    found = _EXIT_CODE.search(detail)
    return int(found[1]) if found else None
