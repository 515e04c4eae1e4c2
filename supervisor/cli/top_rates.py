"""What a supervisor did a second, from what it had counted at two moments. Pure."""

from collections import deque

import msgspec

from mlxsup.protocol.service import Counters, ModelEntry, Stats

# Long enough to be read, short enough to be of now.
_OVER_S = 5.0


class Sight(msgspec.Struct, frozen=True):
    """What a supervisor said of itself, nearly at one moment."""

    stats: Stats
    models: list[ModelEntry]


class Rate(msgspec.Struct, frozen=True):
    """A second. Prompts count when their request has ended."""

    prompt_tokens: float
    completion_tokens: float
    ended: float
    refused: float


NO_RATE = Rate(0.0, 0.0, 0.0, 0.0)


class Rates(msgspec.Struct, frozen=True):
    """Over the last `over_s` seconds of the supervisor's clock. Whoever never had a request is not in here."""

    over_s: float
    overall: Rate
    models: dict[str, Rate]
    priorities: dict[str, Rate]


def rates_between(before: Stats, after: Stats) -> Rates | None:
    """None when no time lies between them, or another supervisor counts since."""
    over_s = after.supervisor.uptime_s - before.supervisor.uptime_s
    if over_s <= 0 or _is_another(before, after):
        return None

    def each(befores: dict[str, Counters], afters: dict[str, Counters]) -> dict[str, Rate]:
        return {name: _rate(befores.get(name), counters, over_s) for name, counters in afters.items()}

    return Rates(
        over_s=over_s,
        overall=_rate(before.overall, after.overall, over_s),
        models=each(before.models, after.models),
        priorities=each(before.priorities, after.priorities),
    )


class History:
    """Of one supervisor, as long as it is the same; a few seconds of it."""

    def __init__(self) -> None:
        self._seen: deque[Stats] = deque()

    def take(self, stats: Stats) -> Rates | None:
        """What it did a second lately, as far as that is known."""
        if self._seen and rates_between(self._seen[-1], stats) is None:
            self._seen.clear()
        self._seen.append(stats)
        # The one that is just long enough ago stays.
        while len(self._seen) > 2 and _age_s(self._seen[1], stats) >= _OVER_S:
            self._seen.popleft()
        return rates_between(self._seen[0], stats)


def _age_s(stats: Stats, now: Stats) -> float:
    return now.supervisor.uptime_s - stats.supervisor.uptime_s


def _is_another(before: Stats, after: Stats) -> bool:
    gone = before.models.keys() - after.models.keys() or before.priorities.keys() - after.priorities.keys()
    pairs = [(before.overall, after.overall)]
    pairs += [
        (before.models[name], counters) for name, counters in after.models.items() if name in before.models
    ]
    pairs += [
        (before.priorities[name], counters)
        for name, counters in after.priorities.items()
        if name in before.priorities
    ]
    return bool(gone) or any(
        old > new for pair in pairs for old, new in zip(*map(_counted, pair), strict=True)
    )


def _counted(counters: Counters) -> tuple[int, ...]:
    """What never becomes less."""
    return (
        counters.prompt_tokens_total,
        counters.completion_tokens_total,
        sum(counters.ended.values()),
        sum(counters.refused.values()),
    )


def _rate(before: Counters | None, after: Counters, over_s: float) -> Rate:
    earlier = (0, 0, 0, 0) if before is None else _counted(before)
    gained = (new - old for new, old in zip(_counted(after), earlier, strict=True))
    return Rate(*(gain / over_s for gain in gained))
