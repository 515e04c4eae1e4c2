"""What the commands tell a user whose workers die."""

import json
import subprocess

import pytest
import trio

from mlxsup.protocol.errors import RpcError
from scripts.faulty_worker.script import Fault, FaultKind, Script
from tests.process.recovery.asking import ask, entry, state
from tests.process.recovery.conftest import StartStand
from tests.process.recovery.setting import ONE
from tests.process.recovery.stand import Stand

pytestmark = pytest.mark.slow

_TOKENS = 20


async def run(stand: Stand, *arguments: str) -> subprocess.CompletedProcess[str]:
    return await trio.to_thread.run_sync(stand.run, *arguments)


async def test_a_load_by_hand_tells_of_each_death_and_when_the_next_worker_is_started(
    start: StartStand,
) -> None:
    stand = start("--load", Fault(kind=FaultKind.ABORT, times=2).encode())
    loaded = await run(stand, "load", ONE)
    stand.end()

    told = [line for line in loaded.stderr.splitlines() if "died" in line]
    assert loaded.returncode == 0
    assert len(told) == 2
    assert told[0].startswith(
        f"{ONE}: the worker died: aborted (signal SIGABRT) while loading; restart after "
    )


async def test_a_load_by_hand_says_what_the_model_backs_off_for_and_does_not_wait(start: StartStand) -> None:
    a_day_s = 86_400.0
    stand = start(
        *("--load", Fault(kind=FaultKind.ABORT, times=2).encode()),
        recovery={"restart_backoff_base_s": a_day_s, "restart_backoff_max_s": a_day_s},
    )
    async with stand.watched() as (client, watch), trio.open_nursery() as nursery:
        nursery.start_soon(client.call, "model/load", {"model": ONE})
        # The first restart comes at once.
        await watch.until(state("backoff"), count=2)
        loaded = await run(stand, "load", ONE)
    stand.end()

    assert loaded.returncode == 0
    assert loaded.stderr.startswith(f"{ONE}: backing off: aborted (signal SIGABRT")


async def test_an_error_about_a_model_names_its_folder_as_it_was_configured(start: StartStand) -> None:
    stand = start()
    (stand.folder / ONE).rename(stand.folder / "elsewhere")
    refused = await run(stand, "load", ONE)
    async with stand.client() as client:
        with pytest.raises(RpcError) as raised:
            await client.call("model/load", {"model": ONE})
    (stand.folder / ONE).mkdir()
    empty = await run(stand, "load", ONE)
    stand.end()

    where = f"(`{ONE}` is `./{ONE}`, that is {stand.folder / ONE})"
    assert (refused.returncode, empty.returncode) == (1, 1)
    assert "is not there" in refused.stderr
    assert "there is no config.json" in empty.stderr
    assert refused.stderr.rstrip().endswith(where)
    assert empty.stderr.rstrip().endswith(where)
    # By the command alone, for it runs where the configuration is.
    assert str(stand.folder) not in raised.value.message


async def test_the_doctor_tells_of_models_and_requests_that_are_given_up_and_what_to_do(
    start: StartStand,
) -> None:
    stand = start(recovery={"restarts_max": 1})
    before = await _findings(stand)
    fault = Fault(kind=FaultKind.ABORT)
    async with stand.watched() as (client, watch):
        # Found guilty of its worker's second death; the deaths of others are the model's own.
        with pytest.raises(RpcError):
            await ask(client, Script(seed=1, fault=fault), _TOKENS)
        await watch.until(lambda event: event.what == "request_quarantined")
        for seed in range(2, 20):
            if (await entry(client)).state == "quarantined":
                break
            with pytest.raises(RpcError):
                await ask(client, Script(seed=seed, fault=fault), _TOKENS)
    after = await _findings(stand)
    shown = await run(stand, "doctor")
    stand.end()

    assert not {"running model", "quarantine"} & set(before)
    assert after["running model"]["found"].startswith(f"{ONE}, quarantined: ")
    assert f"`mlxsup load {ONE}`" in after["running model"]["advice"]
    assert "refused: workers died of them" in after["quarantine"]["found"]
    assert "`mlxsup deaths --forget`" in after["quarantine"]["advice"]
    assert shown.returncode == 1
    assert f"✗ running model    {ONE}, quarantined: " in shown.stdout


async def _findings(stand: Stand) -> dict[str, dict[str, str]]:
    told = json.loads((await run(stand, "doctor", "--json")).stdout)
    return {finding["what"]: finding for finding in told}


async def test_the_status_counts_deaths_by_class_and_what_came_of_them(start: StartStand) -> None:
    stand = start()
    fault = Fault(kind=FaultKind.SIGNAL, number=9, at_token=5, times=1)
    async with stand.client() as client:
        await ask(client, Script(seed=1, fault=fault), _TOKENS)
        stats = await client.call("server/stats")
    shown = await run(stand, "status")
    told = json.loads((await run(stand, "status", "--json")).stdout)["stats"]["workers"][ONE]
    stand.end()

    (report,) = stand.deaths()
    assert stats.workers[ONE].deaths == told["deaths"] == {report["death_class"]: 1}
    assert stats.workers[ONE].restarts == told["restarts"] == 1
    assert f"deaths of {ONE}: 1 {report['death_class']}; 1 restart, 1 request resumed\n" in shown.stdout
