"""Cloudflare's analytics of R2: counts the operations it is given, and answers only the documented queries.

Names of datasets, filters and fields are those of Cloudflare's page (r2/platform/metrics-analytics), and so is the
retention; a query with any other, or without an account, is refused as a whole.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from tests.servers.r2 import ACCOUNT, Answer

RETENTION = timedelta(days=31)
_FILTERS = {"datetime_geq", "datetime_leq", "bucketName"}
_FIELDS: dict[str, dict[str, set[str]]] = {
    "r2OperationsAdaptiveGroups": {
        "sum": {"requests"},
        "dimensions": {"actionType", "actionStatus", "bucketName", "objectName", "responseStatusCode", "datetime"},
    },
    "r2StorageAdaptiveGroups": {
        "max": {"objectCount", "uploadCount", "payloadSize", "metadataSize"},
        "dimensions": {"bucketName", "datetime"},
    },
}
_VARIABLES = {"accountTag": "string!", "bucketName": "string"}
_NODE = re.compile(r"(\w+): (\w+)\(([^)]*)\)\s*\{((?:[^{}]|\{[^{}]*\})*)\}", re.DOTALL)


@dataclass
class Analytics:
    """What was counted.

    Attributes:
        now: Until when.
        operations: When, bucket, operation, status, and how many of them.
        storage: When, bucket, bytes, and objects.
        account: That the token sees.
    """

    now: datetime
    operations: list[tuple[datetime, str, str, int, int]] = field(default_factory=list)
    storage: list[tuple[datetime, str, int, int]] = field(default_factory=list)
    account: str = ACCOUNT

    def __call__(self, document: Any) -> Answer:
        """The answer to a document of GraphQL."""
        try:
            return Answer(200, {"data": self._answer(document["query"], document["variables"]), "errors": None})
        except _RefusedError as exc:
            return Answer(200, {"data": None, "errors": [{"message": str(exc), "extensions": {"code": "400"}}]})

    def _answer(self, query: str, variables: dict[str, str]) -> Any:
        declared = dict(re.findall(r"\$(\w+): ([\w!]+)", query[: query.index("{")]))
        _check(declared.keys() == variables.keys(), f"variables {sorted(declared)} and {sorted(variables)}")
        for name, kind in declared.items():
            _check(kind == _VARIABLES.get(name, "Time"), f"${name} is no {kind}")
        _check("viewer {" in query, "no viewer")
        _check("accounts(filter: { accountTag: $accountTag }) {" in query, "no account")
        if variables["accountTag"] != self.account:
            return {"viewer": {"accounts": []}}
        nodes = _NODE.findall(query)
        _check(len(nodes) == len(re.findall(r"AdaptiveGroups", query)) > 0, "nothing that is understood")
        return {"viewer": {"accounts": [{alias: self._node(*rest, variables) for alias, *rest in nodes}]}}

    def _node(self, dataset: str, arguments: str, body: str, variables: dict[str, str]) -> list[Any]:
        _check(dataset in _FIELDS, f"unknown dataset {dataset}")
        limit = re.search(r"limit: (\d+)", arguments)
        _check(limit is not None and int(limit[1]) <= 10_000, "no limit, or too large a one")
        filters = dict(re.findall(r"(\w+): \$(\w+)", arguments))
        _check(filters.keys() == _FILTERS, f"unknown filters {sorted(filters)}")
        first, last = (_moment(variables[filters[name]]) for name in ("datetime_geq", "datetime_leq"))
        _check(self.now - first <= RETENTION, "cannot request data older than 31 days")
        bucket = variables[filters["bucketName"]]
        asked = {name: fields.split() for name, fields in re.findall(r"(\w+) \{([^{}]*)\}", body)}
        for name, fields in asked.items():
            unknown = set(fields) - _FIELDS[dataset].get(name, set())
            _check(not unknown, f"unknown field {unknown or name}")
        if dataset == "r2StorageAdaptiveGroups":
            _check("orderBy: [datetime_DESC]" in arguments, "an order that is not understood")
            return [
                {
                    "max": {"objectCount": count, "payloadSize": size, "metadataSize": 0},
                    "dimensions": {"datetime": f"{when:%Y-%m-%dT%H:%M:%SZ}"},
                }
                for when, name, size, count in sorted(self.storage, reverse=True)
                if name == bucket and first <= when <= last
            ]
        groups: Counter[tuple[str, int]] = Counter()
        for when, name, action, status, count in self.operations:
            if name == bucket and first <= when <= last:
                groups[action, status] += count
        _check(set(asked["dimensions"]) == {"actionType", "responseStatusCode"}, "groups that are not understood")
        return [
            {"sum": {"requests": count}, "dimensions": {"actionType": action, "responseStatusCode": status}}
            for (action, status), count in groups.items()
        ]


class _RefusedError(Exception):
    pass


def _check(holds: object, otherwise: str) -> None:
    if not holds:
        raise _RefusedError(otherwise)


def _moment(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
