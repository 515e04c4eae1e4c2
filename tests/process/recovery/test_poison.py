"""A request that kills its worker is found, kept out, and let in again by hand; those beside it get their texts."""

import json

import pytest
import trio

from mlxsup.protocol.client.aio import Client
from mlxsup.protocol.errors import ErrorKind, RpcError
from scripts.faulty_worker.answers import faulty_text
from scripts.faulty_worker.script import Fault, FaultKind, Script
from tests.process.recovery.asking import Answer, ask, ask_all
from tests.process.recovery.conftest import StartStand
from tests.process.recovery.setting import ONE
from tests.process.recovery.stand import Stand

pytestmark = pytest.mark.slow

TOKENS = 40
POISON_SEED = 4


def _scripts(fault: Fault) -> list[Script]:
    return [
        Script(seed=seed, token_ms=1, fault=fault if seed == POISON_SEED else None) for seed in range(1, 9)
    ]


async def refusal(client: Client, script: Script) -> RpcError:
    try:
        await ask(client, script, TOKENS)
    except RpcError as error:
        return error
    raise AssertionError("it was let in")


async def test_a_request_that_kills_its_worker_is_out_after_two_deaths_and_the_seven_beside_it_complete(
    start: StartStand,
) -> None:
    stand = start()
    scripts = _scripts(Fault(kind=FaultKind.ABORT, at_token=5))
    async with stand.watched() as (client, watch):
        answers = await ask_all(client, scripts, TOKENS)
        told = watch.of("death")

    stand.end()
    deaths = [event.what for event in told]
    poisoned = answers.pop(POISON_SEED - 1)
    assert isinstance(poisoned, RpcError)
    assert poisoned.kind is ErrorKind.QUARANTINED
    assert [answer.text if isinstance(answer, Answer) else answer for answer in answers] == [
        faulty_text(script.seed, TOKENS) for script in scripts if script.seed != POISON_SEED
    ]
    assert deaths == ["aborted", "aborted", "request_quarantined"]
    assert len(stand.strikes) == 2
    assert [len(report["in_flight"]) for report in stand.deaths()] == [8, 1]


async def test_it_is_refused_when_it_comes_again_until_somebody_lets_it_in(start: StartStand) -> None:
    # After two deaths it would do no harm any more.
    poison = Script(seed=POISON_SEED, fault=Fault(kind=FaultKind.SEGFAULT, at_token=5, times=2))
    stand = start()
    async with stand.client() as client:
        first = await refusal(client, poison)
        again = await refusal(client, poison)
        # Another request by a word, and nobody's enemy.
        neighbour = await ask(client, Script(seed=POISON_SEED), TOKENS)
    stand.end()

    restarted = start()
    async with restarted.client() as client:
        after_restart = await refusal(client, poison)
        listed = await _mlxsup(restarted, "deaths", "--json")
        forgotten = await _mlxsup(restarted, "deaths", "--forget")
        answer = await ask(client, poison, TOKENS)
    restarted.end()

    assert [error.kind for error in (first, again, after_restart)] == [ErrorKind.QUARANTINED] * 3
    assert neighbour.text == answer.text == faulty_text(POISON_SEED, TOKENS)
    (entry,) = json.loads(listed)["quarantined"]
    assert (entry["model"], entry["deaths"], entry["death_class"]) == (ONE, 2, "segmentation_fault")
    assert forgotten == "1 request may try again\n"
    assert len(restarted.strikes) == 2


async def _mlxsup(stand: Stand, *arguments: str) -> str:
    return await trio.to_thread.run_sync(stand.mlxsup, *arguments)
