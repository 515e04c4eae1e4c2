"""What a table of objectives can be wrong in though each of its keys is good by itself. Pure."""

from collections.abc import Iterator

from mlxsup.config.schema import Slo
from mlxsup.protocol.generation import Priority

_SHARED = ("ttft_s", "inter_token_s", "tokens_per_s_min")
_LEAST_URGENT = list(Priority)[-1]


def slo_problems(slo: Slo, tier: Priority, burn_rate_max: float) -> Iterator[tuple[str | None, str]]:
    """Each with its key, or None for the table as a whole."""
    if slo.error_share_max is None and all(getattr(slo, key) is None for key in _SHARED):
        yield None, f"sets no objective: give it at least one of {', '.join((*_SHARED, 'error_share_max'))}"
    if "shed" in slo.actions and tier is _LEAST_URGENT:
        yield "actions", f"`shed` has nothing to act on: no tier is less urgent than {tier.value}"
    # All requests bad is the worst there can be.
    worst = 1 / (1 - slo.target_share)
    if worst < burn_rate_max and any(getattr(slo, key) is not None for key in _SHARED):
        yield (
            "target_share",
            _too_lax(slo.target_share, worst, burn_rate_max, "raise the one or lower the other"),
        )
    if slo.error_share_max is not None and 1 / slo.error_share_max < burn_rate_max:
        yield (
            "error_share_max",
            _too_lax(slo.error_share_max, 1 / slo.error_share_max, burn_rate_max, "lower one of them"),
        )


def _too_lax(value: float, worst: float, burn_rate_max: float, mend: str) -> str:
    return (
        f"is {value}: with that a burn rate can't be above {worst:.3g}, so never qos.burn_rate_max, which is "
        f"{burn_rate_max}; {mend}"
    )
