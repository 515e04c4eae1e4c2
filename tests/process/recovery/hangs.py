"""Workers that hang, found: how long after the hang began. `python -m tests.process.recovery.hangs --help`, from the
checkout's root, finds a hundred of each kind.
"""

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import trio

from scripts.faulty_worker.answers import faulty_text
from scripts.faulty_worker.ledger import Strike
from scripts.faulty_worker.script import Fault, FaultKind, Script
from tests.process.recovery.asking import ask, beside
from tests.process.recovery.stand import Stand, start_stand

HEARTBEAT_S = 0.1
# Of a process that says nothing any more, since native code has the interpreter lock.
SILENCE_S = 2.0
# Of a step that does not end, while heartbeats come. Both are long enough for the healthy worker beside it, whose machine
# may be busy.
STEP_S = 1.5
KINDS = (FaultKind.HANG_WITH_GIL, FaultKind.SPIN_WITH_GIL, FaultKind.HANG, FaultKind.SPIN)
_TOKENS = 20
# Of one supervisor, which the kernel ends after a while.
_HANGS_MAX = 80
# None of them obeys it.
_TERM_GRACE_S = 0.1


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """`after_s`: from the hang to the moment when the supervisor had seen it; infinite if it never did."""

    kind: FaultKind
    after_s: float
    exact: bool
    death_class: str


def budget_s(kind: FaultKind) -> float:
    """Within which a hang has to be found: the phase's, and one look of the watchdog, which is a heartbeat apart."""
    holds_gil = kind in (FaultKind.HANG_WITH_GIL, FaultKind.SPIN_WITH_GIL)
    return (SILENCE_S if holds_gil else STEP_S) + HEARTBEAT_S


def find_hangs(folder: Path, kinds: list[FaultKind], tell: Callable[[Found], None]) -> list[Found]:
    """One hang of each of `kinds`, in their order, each in the middle of a text, while one of another model goes on."""
    recovery = {"silence_s": SILENCE_S, "step_s": STEP_S}
    worker = {"heartbeat_interval_s": HEARTBEAT_S, "term_grace_s": _TERM_GRACE_S}
    with start_stand(folder, [], worker=worker, recovery=recovery) as stand:
        found = trio.run(_find_all, stand, kinds, tell)
        stand.end()
        return found


async def _find_all(stand: Stand, kinds: list[FaultKind], tell: Callable[[Found], None]) -> list[Found]:
    found = []
    async with stand.watched() as (client, watch), beside(client) as other:
        for number, kind in enumerate(kinds):
            fault = Fault(kind=kind, at_token=_TOKENS // 2, times=1, name=str(number))
            answer = await ask(client, Script(seed=number, fault=fault), _TOKENS)
            strike = stand.strikes[-1]
            found.append(
                Found(
                    kind=kind,
                    after_s=noticed_after_s(stand, strike),
                    exact=answer.text == faulty_text(number, _TOKENS),
                    death_class=watch.of("death")[-1].what,
                )
            )
            tell(found[-1])
    other.assert_undisturbed()
    return found


def noticed_after_s(stand: Stand, strike: Strike) -> float:
    """The log says so at once, while the death is told of when the worker has been ended; infinite if it does not."""
    noticed_s = (moment_s for moment_s, line in stand.log if f"worker {strike.pid} is stuck" in line)
    return next(noticed_s, math.inf) - strike.at_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=100, help="Of each kind.")
    parser.add_argument(
        "--kind", action="append", choices=[kind.value for kind in KINDS], help="Default: all."
    )
    arguments = parser.parse_args()
    kinds = [FaultKind(kind) for kind in arguments.kind or KINDS]

    def tell(found: Found) -> None:
        print(found.kind, found.after_s, found.death_class, file=sys.stderr)

    found = []
    left = kinds * arguments.repeats
    while left:
        some, left = left[:_HANGS_MAX], left[_HANGS_MAX:]
        with tempfile.TemporaryDirectory(prefix="mlxsup-hangs-") as folder:
            found += find_hangs(Path(folder), some, tell)
    for kind in kinds:
        print(_summary(kind, [one for one in found if one.kind is kind]))


def _summary(kind: FaultKind, found: list[Found]) -> str:
    after_s = sorted(one.after_s for one in found)
    good = sum(one.exact and one.death_class == "hung" and math.isfinite(one.after_s) for one in found)
    late = sum(one.after_s > budget_s(kind) for one in found)
    return (
        f"{kind}: {good} of {len(found)} found, their texts exact; after median {statistics.median(after_s):.3f} s, "
        f"least {after_s[0]:.3f} s, most {after_s[-1]:.3f} s; {late} later than {budget_s(kind):.1f} s"
    )


if __name__ == "__main__":
    main()
