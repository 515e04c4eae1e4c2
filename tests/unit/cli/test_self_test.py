"""What `mlxsup selftest` shows."""

import click

from mlxsup.protocol.self_test import Check, SelfTestResult
from mlxsup.supervisor.cli.self_test import self_test_table


def test_each_check_has_a_line_and_what_is_not_ok_its_reason_below() -> None:
    checks = [
        Check(feature="model", outcome="ok", tokens=18, seconds=1.26),
        Check(feature="prefix_cache", outcome="switched_off", tokens=3, seconds=0.5, why="prompt 1 " * 12),
        Check(feature="speculation", outcome="not_applicable", why="no"),
    ]
    shown = click.unstyle(self_test_table(SelfTestResult(checks=checks, seconds=2.0))).splitlines()

    assert shown[:3] == [
        "CHECK         RESULT          TOKENS  SECONDS",
        "model         ok              18      1.3",
        "prefix cache  switched off    3       0.5",
    ]
    assert shown[3].startswith("  prompt 1")
    assert shown[-2:] == ["speculation   not applicable  -       0.0", "  no"]
    assert max(map(len, shown)) <= 80
