"""What a soak's findings amount to: invariants, each with its number, and tables. Pure."""

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

import msgspec

from scripts.benchmarks.figures import Spread, paired_ratio, quantile
from scripts.benchmarks.report import Goal, Section, Table
from scripts.soak.bare_start import BareStart, middle
from scripts.soak.causes import Cause
from scripts.soak.history import Asked, Outage, Strike, Target, describe
from scripts.soak.run import Findings
from scripts.soak.setting import MODEL, RECOVERY, Soak

GOAL_RATIO = 1.3
# Beyond what lists of samples, pooled blocks and the like take.
GOAL_GROWTH_MB = 5.0
HEARTBEATS_TO_NOTICE = 3
# With fewer deaths the first quarter is the supervisor's own start.
_GROWTH_DEATHS_MIN = 40
_WRONG_SHOWN = 5


class Span(msgspec.Struct, frozen=True):
    """Of several measurements of one span, in seconds."""

    count: int
    median: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Span | None":
        return cls(len(values), median(values), quantile(values, 0.99), max(values)) if values else None


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """`recovery` is from the strike to the first new text of a stream that was in flight, by how the worker came."""

    seconds: float
    counts: dict[str, int]
    detection: dict[str, Span | None]
    recovery: dict[str, Span | None]
    bare: BareStart | None
    ratios: dict[str, Spread]
    wrong: list[dict[str, Any]]
    trouble: str | None


def judge(soak: Soak, findings: Findings) -> Section:
    figures = _figures(findings)
    tables = [
        _settings_table(soak, findings),
        _requests_table(figures),
        _deaths_table(findings),
        _spans_table(figures),
    ]
    if findings.bare:
        tables.append(_parts_table(findings, figures))
    if figures.wrong:
        tables.append(_wrong_table(figures.wrong))
    return Section("soak", figures, tables, _goals(soak, findings, figures))


def _goals(soak: Soak, findings: Findings, figures: Figures) -> list[Goal]:
    counts = figures.counts
    goals = [
        _none("requests lost, to the model whose workers died", counts["lost"]),
        _none("errors", counts["errors"]),
        _none("texts that are not the undisturbed ones, byte for byte", counts["texts"]),
        _none("requests with tokens missing or twice", counts["tokens"]),
        _none("ids that nobody settled", counts["unsettled"]),
        _none("requests still active in the supervisor", findings.active_at_end),
        _none("deaths that were not told", counts["untold"]),
        _none("deaths of another class than their cause's", counts["misnamed"]),
        _none("deaths that nobody caused", len(findings.history.stray_deaths)),
        _none("death reports too few or too many", abs(findings.reported - counts["told"])),
        _none("leftover processes", len(findings.leftovers)),
        _none("what went wrong with the soak itself", int(findings.trouble is not None)),
    ]
    if findings.before is not None and findings.after is not None:
        goals += [
            _none("descriptors leaked", findings.after.descriptors - findings.before.descriptors),
            _none("zombies", findings.after.zombies),
            _none("child processes too many", findings.after.children - findings.before.children),
        ]
    if soak.other_streams:
        goals += [
            _none("requests of the other model that were disturbed", counts["other_disturbed"]),
            _none("restarts of the other model's worker", len(set(findings.other_pids)) - 1),
        ]
    if counts["struck"] >= _GROWTH_DEATHS_MIN:
        growth = _growth_mb(findings.resident)
        goals.append(
            Goal("growth of the supervisor, MB, last quarter to the second", growth, GOAL_GROWTH_MB, False)
        )
    if Cause.STOP in soak.causes and (beats := _beats_to_notice(soak, findings)):
        goals.append(
            Goal("heartbeats until a stopped worker is noticed", max(beats), HEARTBEATS_TO_NOTICE, False)
        )
    if soak.model is not None and figures.ratios:
        goals.append(
            Goal(
                "recovery with a spare, times a bare start", figures.ratios["start"].median, GOAL_RATIO, False
            )
        )
    return goals


def _none(name: str, value: int) -> Goal:
    return Goal(name, value, 0, at_least=False)


def _figures(findings: Findings) -> Figures:
    history = findings.history
    strikes = history.strikes
    asked = list(history.asked.values())
    struck_model = [one for one in asked if one.model == MODEL]
    told = [strike for strike in strikes if strike.death_s is not None]
    counts = {
        "sent": len(asked),
        "sent to the other model": len(asked) - len(struck_model),
        "ended": sum(one.ended for one in asked),
        "resumed": sum(one.resumed > 0 for one in asked),
        "resumed_more": sum(one.resumed > 1 for one in asked),
        "tokens_checked": sum(one.order.tokens for one in asked if one.ended and not one.error),
        "lost": sum(one.error is not None for one in struck_model),
        "errors": sum(one.error is not None for one in asked),
        "texts": sum(any("differs" in fault for fault in one.faults) for one in asked),
        "tokens": sum(any("instead" in fault for fault in one.faults) for one in asked),
        "unsettled": history.unsettled,
        "other_disturbed": sum(_disturbed(one) for one in asked if one.model != MODEL),
        "struck": len(strikes),
        "told": len(told),
        "too_late": sum(strike.too_late for strike in strikes),
        "untold": sum(_untold(strike) for strike in strikes),
        "misnamed": sum(map(_is_misnamed, strikes)),
        "cut_short": history.cut_short,
    }
    return Figures(
        seconds=findings.seconds,
        counts=counts,
        detection={
            cause: Span.of([s.death_s - s.at_s for s in told if s.blow.cause is cause and s.death_s])
            for cause in sorted({strike.blow.cause for strike in told})
        },
        recovery={
            "with a spare": Span.of([o.seconds for o in history.outages if _fair(o)]),
            "without a spare": Span.of(
                [o.seconds for o in history.outages if not o.with_spare and not o.by_successor]
            ),
            "by a successor": Span.of([o.seconds for o in history.outages if o.by_successor]),
        },
        bare=middle(findings.bare) if findings.bare else None,
        ratios=_ratios(findings),
        wrong=[describe(one) for one in asked if one.error or one.faults][:_WRONG_SHOWN],
        trouble=findings.trouble,
    )


def _disturbed(asked: Asked) -> bool:
    return asked.resumed > 0 or bool(asked.error or asked.faults)


def _untold(strike: Strike) -> bool:
    return strike.death_s is None and strike.target is not Target.SPARE and not strike.too_late


def _is_misnamed(strike: Strike) -> bool:
    return strike.death_class is not None and strike.death_class not in strike.blow.death_classes


def _misnamed(strike: Strike) -> str:
    where = "inside" if strike.blow.inside else "outside"
    return f"{strike.death_class} of {strike.blow.cause} from {where}, {strike.phase}, pid {strike.pid}"


def _fair(outage: Outage) -> bool:
    """With a spare, and nothing but a load to wait for: what is to be compared with a bare load."""
    return outage.with_spare and not outage.by_successor and outage.strike.blow.cause is not Cause.STOP


def _ratios(findings: Findings) -> dict[str, Spread]:
    """Of each recovery with a spare to the bare start that was nearest in time, so that what else the machine did is in
    both: to all of it, to its load and first token, and to its load alone.
    """
    fair = [outage for outage in findings.history.outages if _fair(outage)]
    if not fair or not findings.bare:
        return {}
    nearest = [min(findings.bare, key=lambda start: abs(start.at_s - o.strike.at_s)) for o in fair]
    spans = {
        "start": [start.total_s for start in nearest],
        "load and first token": [start.load_s + start.first_token_s for start in nearest],
        "load": [start.load_s for start in nearest],
    }
    return {name: paired_ratio([outage.seconds for outage in fair], bare) for name, bare in spans.items()}


def _growth_mb(samples: Sequence[tuple[int, int]]) -> float:
    quarter = max(1, len(samples) // 4)
    sizes = [size for _, size in samples]
    return (median(sizes[-quarter:]) - median(sizes[quarter : 2 * quarter])) / 1e6


def _beats_to_notice(soak: Soak, findings: Findings) -> list[float]:
    noticed = dict(findings.noticed)
    beat_s = soak.heartbeat_interval_s
    return [
        (noticed[strike.pid] - strike.wall_s) / beat_s
        for strike in findings.history.strikes
        if strike.blow.cause is Cause.STOP and strike.pid in noticed
    ]


def _settings_table(soak: Soak, findings: Findings) -> Table:
    lines = [f"[recovery] {name} = {value}" for name, value in RECOVERY.items()]
    lines += [f"left out, rounding decides its text: {params}" for params in findings.unstable]
    lines += ["interrupted by a person, before all deaths were done"] if findings.interrupted else []
    lines += [f"trouble: {findings.trouble}"] if findings.trouble else []
    lines += [f"misnamed: {_misnamed(strike)}" for strike in findings.history.strikes if _is_misnamed(strike)]
    lines += [f"nobody caused: {death}" for death in findings.history.stray_deaths[:_WRONG_SHOWN]]
    return _text("Setting", [f"to run it again: {soak.command}", *lines])


def _wrong_table(wrong: list[dict[str, Any]]) -> Table:
    lines = [f"{one['error'] or ', '.join(one['faults'])}: {one['model']}, {one['params']}" for one in wrong]
    return _text("Requests that went wrong", lines)


def _text(title: str, lines: list[str]) -> Table:
    return Table(title, (lines[0],), [(line,) for line in lines[1:]])


def _requests_table(figures: Figures) -> Table:
    counts = figures.counts
    rows = [
        ("requests sent", f"{counts['sent']:,}"),
        ("  of them to the other model", f"{counts['sent to the other model']:,}"),
        ("requests ended", f"{counts['ended']:,}"),
        ("taken up again by another worker", f"{counts['resumed']:,}"),
        ("  more than once", f"{counts['resumed_more']:,}"),
        ("tokens compared", f"{counts['tokens_checked']:,}"),
        ("workers struck", f"{counts['struck']:,}"),
        ("  while they were ending by themselves", f"{counts['too_late']:,}"),
        ("  before the streams had gone on", f"{counts['cut_short']:,}"),
        ("seconds", f"{figures.seconds:,.0f}"),
    ]
    return Table("The soak", ("", ""), rows)


def _deaths_table(findings: Findings) -> Table:
    causes = sorted({strike.blow.cause for strike in findings.history.strikes})
    counted = Counter((_where(strike), strike.blow.cause) for strike in findings.history.strikes)
    phases = sorted({phase for phase, _ in counted})
    rows = [_row(phase, [counted[phase, cause] for cause in causes]) for phase in phases]
    rows.append(_row("all", [sum(counted[phase, cause] for phase in phases) for cause in causes]))
    return Table(
        f"Workers struck, by what and in which phase; recycled meanwhile: {findings.recycles}, of these with a new "
        f"worker that was struck: {findings.recycles_refused}",
        ("", *causes, "all"),
        rows,
    )


def _row(name: str, values: list[int]) -> tuple[str, ...]:
    return (name, *map(str, values), str(sum(values)))


def _where(strike: Strike) -> str:
    if strike.target is Target.SPARE:
        return "idle spare"
    if strike.too_late:
        return "ending by itself"
    phase = strike.phase or "not told"
    who = " (successor)" if strike.target is Target.SUCCESSOR else ""
    if phase != "ready":
        return phase + who
    # Between the strike and the death it became ready, and had no time to compute anything.
    return f"ready: {strike.computing if strike.computing in ('idle', 'decode') else 'prefill'}"


def _spans_table(figures: Figures) -> Table:
    rows = [
        *_span_rows("death told", figures.detection.items()),
        *_span_rows("first new text", figures.recovery.items()),
    ]
    return Table(
        "From the strike, in milliseconds",
        ("", "times", "median", "p99", "most"),
        rows,
    )


def _span_rows(what: str, spans: Iterable[tuple[str, Span | None]]) -> list[tuple[str, ...]]:
    return [
        (f"{what}, {name}", str(span.count), *(f"{1000 * s:,.1f}" for s in (span.median, span.p99, span.max)))
        for name, span in spans
        if span is not None
    ]


def _parts_table(findings: Findings, figures: Figures) -> Table:
    """Where the time of a recovery goes, beside a bare start: medians."""
    fair = [outage for outage in findings.history.outages if _fair(outage)]
    bare = figures.bare
    assert bare is not None

    def middle_of(spans: Iterable[float | None]) -> str:
        known = [span for span in spans if span is not None]
        return f"{1000 * median(known):,.1f}" if known else "-"

    rows = [
        ("death told", middle_of(o.marks["death"] - o.strike.at_s for o in fair), "-"),
        (
            "until the order to load",
            middle_of(o.between("death", "loading") for o in fair),
            f"{1000 * bare.import_s:,.1f}",
        ),
        ("load", middle_of(o.between("loading", "ready") for o in fair), f"{1000 * bare.load_s:,.1f}"),
        (
            "first new token",
            middle_of(o.first_text_s - o.marks["ready"] for o in fair if o.first_text_s is not None),
            f"{1000 * bare.first_token_s:,.1f}",
        ),
        ("all", middle_of(o.seconds for o in fair), f"{1000 * bare.total_s:,.1f}"),
        *(
            (f"times a bare {name}", f"{ratio.median:.2f}", f"{ratio.min:.2f} to {ratio.max:.2f}")
            for name, ratio in figures.ratios.items()
        ),
    ]
    return Table(
        f"Recoveries with a spare ({len(fair)}) and bare starts between them ({len(findings.bare)}): medians in milliseconds",
        ("", "recovery", "bare"),
        rows,
    )
