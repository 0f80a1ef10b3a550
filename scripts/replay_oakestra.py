# ruff: noqa: INP001 - a command of its own, not a package
"""Send the requests that tests/oakestra_requests holds to a real Oakestra and compare the status of each answer.

    FLOPS_OAKESTRA_PASSWORD=... python scripts/replay_oakestra.py http://HOST:10000 [--username Admin] [--image REF] [FILE ...]

Ids and tokens in the records are names in braces; what this Oakestra answers takes their place. Ends with 1 where an answer differs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import httpx

from flops.orchestrators.oakestra_api import decode

RECORDS = Path(__file__).parents[1] / "tests" / "oakestra_requests"
_NAME = re.compile(r"\{([a-z_]+(?:-\d+)?)\}")
_UNAUTHORIZED = 401


class Replay:
    """One record's requests, in order, with this Oakestra's own ids and tokens."""

    def __init__(self, client: httpx.Client, *, username: str, password: str, image: str | None) -> None:
        self._client = client
        self._login = {"username": username, "password": password}
        self._image = image
        self._names: dict[str, str] = {}

    def send(self, request: dict[str, Any]) -> int:
        """The status of this Oakestra's answer."""
        body = self._login if request["path"] == "/api/auth/login" else self._body(request["body"])
        bearer = self._filled(request["bearer"])
        headers = {"authorization": f"Bearer {bearer}"} if bearer else {}
        response = self._client.request(request["method"], self._filled(request["path"]), json=body, headers=headers)
        self._learn(request, decode(response.content))
        return response.status_code

    def _body(self, body: Any) -> Any:
        filled = json.loads(self._filled(json.dumps(body)))
        if self._image and filled:
            for service in filled["applications"][0]["microservices"]:
                service["code"] = self._image
        return filled

    def _filled(self, text: str) -> str:
        return _NAME.sub(lambda match: self._names.get(match[1], match[0]), text)

    def _learn(self, request: dict[str, Any], answer: Any) -> None:
        """Ids and tokens, numbered as the records number them."""
        if request["path"].startswith("/api/auth/") and isinstance(answer, dict):
            for name in ("token", "refresh_token"):
                if name in answer:
                    self._keep(name, answer[name])
        elif (request["method"], request["path"]) == ("POST", "/api/application/") and isinstance(answer, list):
            wanted = request["body"]["applications"][0]["application_name"]
            for one in answer:
                if one.get("application_name") == wanted:
                    self._keep("application", one["applicationID"])
        elif (request["method"], request["path"]) == ("POST", "/api/service/") and isinstance(answer, dict):
            self._keep("service", answer.get("job_id", ""))

    def _keep(self, name: str, value: str) -> None:
        count = sum(known == name or known.startswith(f"{name}-") for known in self._names)
        self._names[f"{name}-{count + 1}" if count else name] = value


def main() -> int:
    parser = argparse.ArgumentParser(description="Replay the recorded requests against a real Oakestra.")
    parser.add_argument("url")
    parser.add_argument("--username", default="Admin")
    parser.add_argument("--image", help="an image that this Oakestra's nodes can pull, instead of the recorded name")
    parser.add_argument("files", nargs="*", type=Path, default=sorted(RECORDS.glob("*.json")))
    options = parser.parse_args()
    password = os.environ.get("FLOPS_OAKESTRA_PASSWORD", "")
    differ = 0
    for file in options.files:
        with httpx.Client(base_url=options.url, timeout=30) as client:
            replay = Replay(client, username=options.username, password=password, image=options.image)
            for request in json.loads(file.read_text()):
                if request["status"] == _UNAUTHORIZED:  # a token that had expired in the record has not now
                    continue
                status = replay.send(request)
                same = status == request["status"]
                differ += not same
                told = "" if same else f", recorded {request['status']}"
                sys.stdout.write(f"{file.stem}: {request['method']} {request['path']}: {status}{told}\n")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
