"""Whatever a client does and in whatever order: every request gets one response, and nothing else gets any."""

from collections import Counter
from typing import Any

import msgspec
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from mlxsup.config.schema import Model, Server
from mlxsup.protocol.framing import HEADERS, LINES, Framing
from tests.fakes.memory_worker import Plan, full_text
from tests.unit.endpoint.in_memory import MODEL, MemoryClient, memory_supervisor


class Ask(msgspec.Struct, frozen=True):
    """A request for text."""

    tokens: int
    stream: bool


class Call(msgspec.Struct, frozen=True):
    method: str


class Cancel(msgspec.Struct, frozen=True):
    """Of the request so many before."""

    back: int


class Notify(msgspec.Struct, frozen=True):
    method: str


class Repeat(msgspec.Struct, frozen=True):
    """The id of the request so many before, once more."""

    back: int


class Garbage(msgspec.Struct, frozen=True):
    payload: bytes


class Pause(msgspec.Struct, frozen=True):
    seconds: float


requests = st.one_of(
    st.builds(Ask, st.integers(1, 6), st.booleans()),
    st.builds(Call, st.sampled_from(["server/info", "server/health", "model/load", "no/method"])),
)
singles = st.one_of(
    requests,
    st.builds(Cancel, st.integers(0, 5)),
    st.builds(Notify, st.sampled_from(["server/info", "no/method", "generate"])),
    st.builds(Repeat, st.integers(0, 3)),
)
Step = Ask | Call | Cancel | Notify | Repeat | Garbage | Pause | list[Any]
steps = st.one_of(
    singles,
    st.lists(singles, min_size=1, max_size=4),
    st.builds(Garbage, st.sampled_from([b"{", b"\xff", b"1", b"[]", b'{"jsonrpc":"2.0"}', b"[" * 300])),
    st.builds(Pause, st.sampled_from([0.0, 0.1, 0.25, 1.0, 5.0])),
)


class Ledger:
    """What was sent, so that what comes back can be held against it."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.streamed: dict[int, int] = {}
        self.owed: Counter[int | None] = Counter()

    def write(self, step: Any) -> dict[str, Any]:
        """The message of a step, entered into the books."""
        match step:
            case Notify(method=method):
                return {"jsonrpc": "2.0", "method": method, "params": {}}
            case Cancel(back=back):
                return {"jsonrpc": "2.0", "method": "$/cancelRequest", "params": {"id": self._older(back)}}
            case Repeat(back=back) if self.asked:
                id = self._older(back)
                self.owed[id] += 1
                return {"jsonrpc": "2.0", "method": "server/info", "id": id}
        id = len(self.asked)
        self.asked.append(id)
        self.owed[id] += 1
        if isinstance(step, Ask):
            self.streamed[id] = step.tokens if step.stream else 0
            params = {"model": MODEL, "prompt": "p", "max_tokens": step.tokens, "stream": step.stream}
            return {"jsonrpc": "2.0", "method": "generate", "id": id, "params": params}
        method = step.method if isinstance(step, Call) else "server/info"
        params = {"model": MODEL} if method == "model/load" else {}
        return {"jsonrpc": "2.0", "method": method, "id": id, "params": params}

    def _older(self, back: int) -> int:
        return self.asked[max(0, len(self.asked) - 1 - back)] if self.asked else -1


async def play(client: MemoryClient, steps: list[Step], ledger: Ledger) -> list[Any]:
    for step in steps:
        match step:
            case Pause(seconds=seconds):
                await trio.sleep(seconds)
            case Garbage(payload=payload):
                ledger.owed[None] += 1
                await client.send(payload)
            case list():
                await client.send([ledger.write(single) for single in step])
            case _:
                await client.send(ledger.write(step))
    return await client.finish()


def check(messages: list[Any], ledger: Ledger) -> None:
    answers: Counter[int | None] = Counter()
    texts: dict[int, str] = {}
    for message in messages:
        if isinstance(message, dict) and "method" in message:
            assert message["method"] == "stream/delta"
            id = message["params"]["id"]
            texts[id] = texts.get(id, "") + message["params"]["text"]
            continue
        for answer in message if isinstance(message, list) else [message]:
            assert ("result" in answer) != ("error" in answer)
            answers[answer["id"]] += 1
            check_text(answer, texts, ledger)
    assert answers == ledger.owed


def check_text(answer: Any, texts: dict[int, str], ledger: Ledger) -> None:
    id, result = answer["id"], answer.get("result") or {}
    if "finish_reason" not in result:
        return
    assert full_text("p", 6).startswith(result["text"])
    if ledger.streamed[id]:
        assert texts.get(id, "") == result["text"]
    else:
        assert id not in texts


async def scenario(steps: list[list[Step]], framing: Framing, server: Server, plan: Plan) -> None:
    model = Model(batch_sequences_max=2, queue_requests_max=8)
    ledgers = [Ledger() for _ in steps]
    outcomes: list[list[Any]] = [[] for _ in steps]

    async def run(number: int, client: MemoryClient) -> None:
        outcomes[number] = await play(client, steps[number], ledgers[number])

    async with (
        memory_supervisor(plan, server=server, model=model) as supervisor,
        trio.open_nursery() as nursery,
    ):
        for number in range(len(steps)):
            nursery.start_soon(run, number, supervisor.connect(framing, slow=number % 2 == 1))
    for messages, ledger in zip(outcomes, ledgers, strict=True):
        check(messages, ledger)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.lists(steps, max_size=15), min_size=1, max_size=3),
    st.sampled_from([LINES, HEADERS]),
    st.sampled_from([3, 1024]),
    st.sampled_from([Plan(), Plan(hello_s=0.0, load_s=0.0, token_s=0.05)]),
)
def test_every_request_gets_exactly_one_response_and_nothing_else_gets_any(
    steps: list[list[Step]], framing: Framing, in_flight_requests_max: int, plan: Plan
) -> None:
    server = Server(in_flight_requests_max=in_flight_requests_max)
    trio.run(scenario, steps, framing, server, plan, clock=MockClock(autojump_threshold=0))
