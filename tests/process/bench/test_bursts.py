"""What the benchmark of the whole stack paid for: requests that are made together are computed together."""

import os
from typing import Any

import msgspec
import trio
import trio.testing

from mlxsup.protocol import worker_link as link
from mlxsup.protocol.client.aio import Client, _serving
from mlxsup.protocol.exit_codes import ExitCode
from mlxsup.protocol.generation import FinishReason
from mlxsup.worker.batch_loop import BatchLoop
from mlxsup.worker.engine.interface import Emission, IsWanted
from mlxsup.worker.inbox import Command, EndOfInput, Inbox
from mlxsup.worker.outbox import Outbox
from mlxsup.worker.vitals import Vitals
from scripts.benchmarks.null_engine import Flood, NullEngine

_SAMPLING = link.Sampling(
    temperature=0,
    top_p=1,
    top_k=0,
    min_p=0,
    repetition_penalty=1,
    presence_penalty=0,
    frequency_penalty=0,
    seed=0,
)


class _Recorder(NullEngine):
    """Ends the loop after the last of `requests`; `batches` has the size of the batch in each step."""

    def __init__(self, inbox: Inbox, requests: int) -> None:
        super().__init__()
        self._inbox = inbox
        self._left = requests
        self.batches: list[int] = []

    def step(self, is_wanted: IsWanted) -> list[Emission] | None:
        self.batches.append(self.sequences)
        emissions = super().step(is_wanted)
        assert emissions is not None
        self._left -= sum(emission.finish is FinishReason.LENGTH for emission in emissions)
        if not self._left:
            self._inbox.put(EndOfInput())
        return emissions


def _generate() -> link.Generate:
    return link.Generate(max_tokens=2, sampling=_SAMPLING, prompt=msgspec.json.encode(Flood(seed=0)).decode())


def test_requests_that_come_to_an_idle_worker_together_are_one_batch_from_its_first_step() -> None:
    read_end, write_end = os.pipe()
    inbox = Inbox()
    engine = _Recorder(inbox, requests=5)
    for id in range(1, 6):
        inbox.put(Command(id, _generate()))

    code = BatchLoop(engine, inbox, Outbox(write_end), Vitals()).run()

    os.close(read_end)
    assert code is ExitCode.CLEAN
    assert engine.batches == [5, 5]


async def test_requests_that_tasks_make_together_leave_in_one_piece() -> None:
    sent: list[bytes] = []
    to_server, from_client = trio.testing.memory_stream_pair()
    original = to_server.send_all

    async def send_all(data: Any) -> None:
        sent.append(bytes(data))
        await original(data)

    to_server.send_all = send_all  # type: ignore[method-assign]
    async with _serving(Client(to_server, to_server)) as client, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(client.call, "server/health")
        await trio.testing.wait_all_tasks_blocked()
        pieces = list(sent)
        nursery.cancel_scope.cancel()

    await from_client.aclose()
    assert [piece.count(b"server/health") for piece in pieces] == [5]
