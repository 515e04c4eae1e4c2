"""What may be done with workers. Pure."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from tests.fakes.memory_worker import full_text
from tests.simulation.checks.facts import EPSILON_S, Facts
from tests.simulation.checks.requests import _LAG_TOKENS_MAX
from tests.simulation.history import Died, Given, Loading, Order, Signalled, Struck, Told
from tests.simulation.schedule import Fault

_LIVES_MAX = 2


def batches_keep_their_bound(facts: Facts) -> Iterator[str]:
    models = {loading.pid: loading.model for loading in facts.all(Loading)}
    for order in facts.all(Order):
        bound = facts.schedule.config.models[models[order.pid]].batch_sequences_max
        if order.batch > bound:
            yield f"worker {order.pid} computes {order.batch} requests at {order.at_s:.3f} s"


def orders_go_on_where_the_last_one_ended(facts: Facts) -> Iterator[str]:
    for request, orders in facts.orders.items():
        key = facts.accepted[request].key if request in facts.accepted else f"request {request}"
        if len({order.same for order in orders}) > 1:
            yield f"{key} is not the same order for each worker"
        for order in orders:
            tokens = len(order.delivered)
            if order.delivered != list(range(tokens)):
                yield f"{key} goes on behind tokens {order.delivered}"
            chars = [
                len(full_text(order.prompt, count))
                for count in range(max(0, tokens - _LAG_TOKENS_MAX), tokens + 1)
            ]
            if order.delivered_chars not in chars:
                yield f"{key} goes on behind {tokens} tokens and {order.delivered_chars} characters"
        counts = [len(order.delivered) for order in orders]
        if counts != sorted(counts):
            yield f"{key} goes on behind {counts} tokens: some are lost"


def nothing_is_given_to_a_worker_that_is_ending(facts: Facts) -> Iterator[str]:
    """Nor to one that is dead, or can say nothing any more."""
    ending: dict[int, float] = {}
    for entry in facts.history:
        match entry:
            case Told() | Signalled() | Died() | Struck(fault=Fault.CLOSE_OUTPUT):
                ending.setdefault(entry.pid, entry.at_s)
            case Given() if entry.at_s > ending.get(entry.pid, entry.at_s) + EPSILON_S:
                yield f"request {entry.request} is given to {entry.pid}, which is ending"


def requests_are_in_one_worker_at_a_time(facts: Facts) -> Iterator[str]:
    for request, orders in facts.orders.items():
        ask = facts.ask_of(request) if request in facts.accepted else None
        if ask is not None and not ask.resume and len(orders) > 1:
            yield f"{ask.key} wants no other worker, and gets {len(orders)}"
        for earlier, later in pairwise(orders):
            died = facts.died.get(earlier.pid)
            if facts.between(earlier, facts.gave_way[request], later):
                continue
            if earlier.pid not in facts.undead and (died is None or not facts.before(died, later)):
                yield f"request {request} is given to {later.pid} while {earlier.pid} has it"


def two_live_at_most(facts: Facts) -> Iterator[str]:
    alive: dict[str, set[int]] = defaultdict(set)
    for loading in facts.all(Loading):
        lives = alive[loading.model]
        lives -= {pid for pid in lives if pid in facts.died and facts.before(facts.died[pid], loading)}
        lives.add(loading.pid)
        lives -= facts.undead
        if len(lives) > _LIVES_MAX:
            yield f"{loading.model} has {len(lives)} workers at {loading.at_s:.3f} s"


def workers_keep_their_budget(facts: Facts) -> Iterator[str]:
    """But for those that the kernel holds for ever, of which nobody knows what they hold."""
    config = facts.schedule.config
    if config.memory.budget_bytes is None:
        return
    alive: dict[int, str] = {}
    for loading in facts.all(Loading):
        alive[loading.pid] = loading.model
        for pid in list(alive):
            if pid in facts.undead or (pid in facts.died and facts.before(facts.died[pid], loading)):
                del alive[pid]
        held = sum(facts.schedule.resident_bytes[model] for model in alive.values())
        if held > config.memory.budget_bytes:
            yield f"workers hold {held} of {config.memory.budget_bytes} bytes at {loading.at_s:.3f} s"


def well_workers_are_ended_gently(facts: Facts) -> Iterator[str]:
    """Each rung of the ladder only when the one before has had its time."""
    config = facts.schedule.config.worker
    told = {entry.pid: entry.at_s for entry in facts.all(Told)}
    terminated: dict[int, float] = {}
    for signalled in facts.all(Signalled):
        pid = signalled.pid
        if facts.struck[pid] or _may_be_broken(facts, pid):
            continue
        if pid not in told:
            yield f"worker {pid} was well and gets {signalled.name} at {signalled.at_s:.3f} s"
        elif signalled.name == "SIGTERM":
            terminated[pid] = signalled.at_s
            if signalled.at_s < told[pid] + config.exit_grace_s - EPSILON_S:
                yield f"worker {pid} gets SIGTERM {signalled.at_s - told[pid]:.3f} s after it was told to end"
        elif signalled.name == "SIGKILL" and signalled.at_s < (
            terminated.get(pid, signalled.at_s) + config.term_grace_s - EPSILON_S
        ):
            yield f"worker {pid} gets SIGKILL before its time"


def _may_be_broken(facts: Facts, pid: int) -> bool:
    return pid in facts.nonsense


def all_have_ended(facts: Facts) -> Iterator[str]:
    for pid in facts.spawned:
        if pid not in facts.died and pid not in facts.undead:
            yield f"worker {pid} never ends"
