"""`coldstream doctor`."""

from __future__ import annotations

from collections import Counter

import click

from coldstream.cli.live import Activity, live_lines
from coldstream.cli.output import checks_text, echo_check
from coldstream.cli.session import State
from coldstream.cli.verbs import Verb, vllm_option
from coldstream.operate.doctor.case import Case
from coldstream.operate.doctor.checklist import examine, select


@click.command(cls=Verb, epilog="Exit codes: 0 no check failed, 1 a check failed, 2 usage, 130 cancelled.")
@click.argument("name", metavar="[MODEL]", required=False)
@click.option("--only", metavar="CHECK", multiple=True, help="Run only this check. Repeatable.")
@click.option("--skip", metavar="CHECK", multiple=True, help="Skip this check. Repeatable.")
@click.option("--quick", is_flag=True, help="Skip the slow checks: sampled hashes and speed.")
@vllm_option
def command(
    state: State, name: str | None, only: tuple[str, ...], skip: tuple[str, ...], quick: bool, program: str | None
) -> int:
    """Diagnose the configuration, bucket, model and node, with fixes.

    \b
    coldstream doctor                                   without a model
    coldstream doctor Qwen/Qwen3-8B
    coldstream doctor Qwen/Qwen3-8B --quick
    coldstream doctor Qwen/Qwen3-8B --only speed --only disk
    coldstream doctor Qwen/Qwen3-8B --json || exit 1    in CI

    docs/doctor.md describes each check, its failures and their fixes.
    """
    items = select(only=only, skip=skip, quick=quick)
    activity = Activity()
    case = Case(state.settings(), name, vllm=program, tell=activity.tell)
    checks = []
    with live_lines(state, activity.text):
        for check in examine(case, items, begin=activity.begin):
            activity.begin("")
            checks.append(check)
            if not state.json:
                echo_check(check, 16)
    counts = Counter(check.state for check in checks)
    document = {"checks": [check.document() for check in checks], "failed": counts["fail"], "warned": counts["warn"]}
    state.show(document | {"skipped": counts["skipped"], "ok": counts["ok"]}, checks_text(counts))
    return 1 if counts["fail"] else 0
