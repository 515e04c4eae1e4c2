"""Finds out whether each prompt has the same answer with every feature of the engine as by the model alone.

Rule 1: nothing here is shared with what serves but the model itself. Rule 2: a step is one of a batch's, so that whatever
runs goes on in between. Rule 3: features are tried one by one, together in a batch only once that has proved right, so that
none is blamed for another one.
"""

import sys
import time
import traceback
from collections.abc import Callable, Collection, Generator

from mlxsup.protocol.self_test import Check, Feature, Outcome, SelfTestResult
from mlxsup.protocol.worker_link import REQUEST_MARK
from mlxsup.worker.engine.interface import IsWanted
from mlxsup.worker.engine.selftest.compare import Agreement, Trace, compare, fault
from mlxsup.worker.engine.selftest.rig import Eager, Rig, say, say_plainly

# What code for another kind of model raises. Anything else, such as a lack of memory, is no fault of a feature's.
_FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    TypeError,
    ValueError,
)
_LATE = 3
# The prompt with the longest answer, one that begins like it, and two others, of which one has a long answer.
_FIRST, _FORKED, _OTHER, _LONG = 0, -1, 2, 5

Compared = Generator[None, None, Agreement]


class _NotApplicableError(Exception):
    """There is nothing to check, for that reason."""


class SelfTest:
    """`off` are features that are not used, and not checked."""

    def __init__(self, rig: Rig, off: Collection[Feature]) -> None:
        self._rig = rig
        self._off = set(off)
        self._expected: list[Trace] = []
        self._is_wanted: IsWanted = lambda: False
        self._spent_s = 0.0
        self._began_s = 0.0
        self._steps = self._run()

    def step(self, is_wanted: IsWanted) -> SelfTestResult | None:
        """Go on for a step, or until it `is_wanted` elsewhere; the result once it is over."""
        self._is_wanted = is_wanted
        self._began_s = time.monotonic()
        try:
            next(self._steps)
        except StopIteration as end:
            result: SelfTestResult = end.value
            return result
        self._spent_s += time.monotonic() - self._began_s
        return None

    @property
    def _now_s(self) -> float:
        """Spent on it."""
        return self._spent_s + time.monotonic() - self._began_s

    def _run(self) -> Generator[None, None, SelfTestResult]:
        checks = [(yield from self._check_model())]
        if checks[0].outcome == "ok":
            checks.append((yield from self._check("batch", self._together)))
            checks.append((yield from self._check("prefix_cache", self._warm)))
            checks.append((yield from self._check("speculation", self._guessed)))
        return SelfTestResult(checks=checks, seconds=round(self._now_s, 3))

    def _check_model(self) -> Generator[None, None, Check]:
        began_s = self._now_s
        for number in range(len(self._rig.prompts)):
            self._expected.append((yield from say_plainly(self._rig, number)))
        why = next(filter(None, (fault(each, self._rig.vocabulary_tokens) for each in self._expected)), "")
        return Check(
            feature="model",
            outcome="failed" if why else "ok",
            tokens=sum(len(trace.tokens) for trace in self._expected),
            seconds=round(self._now_s - began_s, 3),
            why=why,
        )

    def _check(self, feature: Feature, compared: Callable[[], Compared]) -> Generator[None, None, Check]:
        if feature in self._off:
            return Check(feature=feature, outcome="switched_off", why="an earlier test found it wrong")
        began_s = self._now_s
        outcome: Outcome = "ok"
        try:
            found = yield from compared()
        except _NotApplicableError as error:
            found, outcome = Agreement(0, str(error)), "not_applicable"
        except _FAULTS as error:
            _print_failure()
            found = Agreement(0, f"it fails with {type(error).__name__}")
        return self._checked(feature, outcome, found, self._now_s - began_s)

    def _checked(self, feature: Feature, outcome: Outcome, found: Agreement, seconds: float) -> Check:
        why = found.why
        if outcome == "ok" and why:
            outcome = "switched_off"
            self._off.add(feature)
        elif outcome == "ok" and not found.tokens:
            outcome, why = "not_applicable", "what this model says is too close to call"
        return Check(
            feature=feature, outcome=outcome, tokens=found.tokens, seconds=round(seconds, 3), why=why
        )

    def _wanted(self) -> bool:
        return self._is_wanted()

    @property
    def _rows(self) -> int:
        """As many as are computed together."""
        return 1 if "batch" in self._off else min(len(self._rig.prompts), self._rig.sequences_max)

    def _compare(self, numbers: list[int], found: list[Trace]) -> Agreement:
        return compare([self._expected[number] for number in numbers], found, self._rig.tolerance)

    # The features.

    def _together(self) -> Compared:
        if self._rows == 1:
            raise _NotApplicableError("one sequence is computed at a time")
        numbers = list(range(len(self._rig.prompts)))
        members = [self._rig.member(number) for number in numbers]
        found = yield from say(self._rig.batch(self._rows), members, self._wanted, late=_LATE)
        return self._compare(numbers, found)

    def _warm(self) -> Compared:
        if not self._rig.keeps_prefixes:
            raise _NotApplicableError("nothing is kept of beginnings")
        batch = self._rig.batch(self._rows, prefixes=self._rig.prefixes())
        cold = self._rig.member(_FIRST, cache_key="")
        cold.tokens_max = cold.prompt_tokens + 1
        yield from say(batch, [cold], self._wanted)
        numbers = [_FIRST, _FORKED, _OTHER]
        members = [self._rig.member(number, cache_key="", again=True) for number in numbers]
        warm = yield from say(batch, members, self._wanted)
        found = self._compare(numbers, warm)
        if not found.why and not any(member.taken for member in members):
            raise _NotApplicableError("of texts as short as these nothing is kept")
        return found

    def _guessed(self) -> Compared:
        """By one who knows the text but for some places, alone and beside others; and by whom requests have."""
        knowing = self._rig.knowing(_FIRST, self._expected[_FIRST].tokens)
        first = [self._rig.member(_FIRST, guesser=knowing)]
        alone = yield from say(self._rig.batch(1, widths=Eager()), first, self._wanted)
        if not knowing.guessed:
            raise _NotApplicableError("from this model's caches nothing can be taken back")
        known, usual = [_FORKED, _OTHER], [_LONG]
        members = [
            self._rig.member(number, guesser=self._rig.knowing(number, self._expected[number].tokens))
            for number in known
        ]
        members += [self._rig.member(number, guesser=self._rig.guesser()) for number in usual]
        together = yield from say(self._rig.batch(self._rows, widths=Eager()), members, self._wanted)
        return self._compare([_FIRST, *known, *usual], [*alone, *together])


def _print_failure() -> None:
    """The traceback, each line marked: it explains no death that may come later."""
    lines = traceback.format_exc().splitlines()
    sys.stderr.write("".join(f"{REQUEST_MARK}{line}\n" for line in lines))
    sys.stderr.flush()
