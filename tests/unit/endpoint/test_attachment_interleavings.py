"""Clients that send the same keyed requests again and again, leave, come back and cancel, over workers that die: each gets
one answer to each call, whole and in order, and when they are gone nothing is left.
"""

from typing import Any

import msgspec
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from mlxsup.config.schema import Model, Recovery, Server
from tests.fakes.memory_worker import Plan, full_text
from tests.unit.endpoint.in_memory import WAIT_S, MemoryClient, MemorySupervisor, memory_supervisor

_SERVER = Server(reattach_s=3.0, result_kept_s=5.0, results_kept_max=2, attached_max=3)
_RECOVERY = Recovery(
    restart_backoff_base_s=0.01,
    restart_healthy_s=0.01,
    restarts_max=1000,
    breaker_deaths=1000,
    machine_deaths=1000,
)
_TOKENS = {"a": 3, "b": 12, "c": 25}


class Ask(msgspec.Struct, frozen=True):
    key: str
    stream: bool
    deadline_ms: int | None


class Cancel(msgspec.Struct, frozen=True):
    """Of the call so many before."""

    back: int


class Leave(msgspec.Struct, frozen=True):
    """And come back at once, over a new connection."""


class Die(msgspec.Struct, frozen=True):
    """Whatever worker there is."""


class Pause(msgspec.Struct, frozen=True):
    seconds: float


Step = Ask | Cancel | Leave | Die | Pause
asks = st.builds(
    Ask, st.sampled_from(sorted(_TOKENS)), st.booleans(), st.sampled_from([None, None, None, 300, 1500])
)
steps = st.one_of(
    asks,
    asks,
    st.builds(Cancel, st.integers(0, 3)),
    st.builds(Leave),
    st.builds(Die),
    st.builds(Pause, st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0, 4.0])),
)


class Session:
    """One client, over one connection after the other."""

    def __init__(self, supervisor: MemorySupervisor) -> None:
        self._supervisor = supervisor
        self._client = supervisor.connect()
        self._asked: list[Ask] = []
        self._cancelled: set[int] = set()

    async def play(self, script: list[Step]) -> None:
        for step in script:
            match step:
                case Ask():
                    id = len(self._asked)
                    self._asked.append(step)
                    await self._send(id, step)
                case Cancel(back=back) if self._asked:
                    id = max(0, len(self._asked) - 1 - back)
                    self._cancelled.add(id)
                    await self._client.cancel(id)
                case Leave():
                    await self._client.leave()
                    self._asked, self._cancelled = [], set()
                    self._client = self._supervisor.connect()
                case Die():
                    for worker in self._supervisor.shop.workers:
                        worker.die(-9)
                case Pause(seconds=seconds):
                    await trio.sleep(seconds)
        await self._end()

    async def _send(self, id: int, ask: Ask) -> None:
        deadline = {} if ask.deadline_ms is None else {"deadline_ms": ask.deadline_ms}
        tokens = _TOKENS[ask.key]
        await self._client.generate(id, tokens, idempotency_key=ask.key, stream=ask.stream, **deadline)

    async def _end(self) -> None:
        messages = await self._client.finish()
        check(messages, self._asked, self._cancelled)
        answered = sorted(message["id"] for message in messages if "id" in message)
        assert answered == list(range(len(self._asked)))


def check(messages: list[Any], asked: list[Ask], cancelled: set[int]) -> None:
    texts: dict[int, str] = {}
    answered: set[int] = set()
    for message in messages:
        if "method" in message:
            id = message["params"]["id"]
            assert id not in answered
            assert asked[id].stream
            texts[id] = texts.get(id, "") + message["params"]["text"]
            continue
        id = message["id"]
        assert id not in answered
        answered.add(id)
        check_answer(message, asked[id], texts.get(id, ""), is_cancelled=id in cancelled)


def check_answer(message: Any, ask: Ask, pieces: str, *, is_cancelled: bool) -> None:
    whole = full_text("p", _TOKENS[ask.key])
    assert whole.startswith(pieces)
    if "error" in message:
        kind = message["error"]["data"]["kind"]
        assert kind in ("limit_exceeded", "quarantined", "worker_died", "overloaded") or (
            kind == "deadline_exceeded" and ask.deadline_ms is not None
        )
        return
    result = message["result"]
    if ask.stream:
        assert pieces == result["text"]
    if result["finish_reason"] == "length":
        assert result["text"] == whole
    else:
        assert (result["finish_reason"], is_cancelled) == ("cancelled", True)
        assert whole.startswith(result["text"])


async def scenario(scripts: list[list[Step]], plan: Plan) -> None:
    model = Model(batch_sequences_max=2)
    async with memory_supervisor(plan, server=_SERVER, model=model, recovery=_RECOVERY) as supervisor:
        with trio.fail_after(WAIT_S):
            async with trio.open_nursery() as nursery:
                for script in scripts:
                    nursery.start_soon(Session(supervisor).play, script)
        # Whoever is gone does not come back: first it is cancelled, and then no result is left.
        await trio.sleep(_SERVER.reattach_s + 120.0)
        watch: MemoryClient = supervisor.connect()
        await watch.request(1, "server/stats")
        (answer,) = await watch.finish()
        keyed = answer["result"]["keyed"]
        assert {
            name: keyed[name] for name in ("running", "attached", "results_kept", "results_kept_bytes")
        } == {
            "running": 0,
            "attached": 0,
            "results_kept": 0,
            "results_kept_bytes": 0,
        }
        assert answer["result"]["overall"]["requests_active"] == 0
        assert supervisor.service.params_bytes == 0


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.lists(steps, max_size=14), min_size=1, max_size=3),
    st.sampled_from([Plan(hello_s=0.0, load_s=0.0), Plan(), Plan(text_lag_tokens=2)]),
)
def test_each_call_gets_one_answer_whole_and_in_order_and_nothing_is_left(
    scripts: list[list[Step]], plan: Plan
) -> None:
    trio.run(scenario, scripts, plan, clock=MockClock(autojump_threshold=0))
