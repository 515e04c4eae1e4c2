"""Asks a supervisor how it stands, at intervals, also across its restarts."""

from pathlib import Path
from typing import Protocol

import msgspec
import trio

from mlxsup.protocol.client.aio import Client, connect
from mlxsup.protocol.client.exchange import ConnectionLostError
from mlxsup.protocol.errors import RpcError
from mlxsup.supervisor.cli.top_rates import History, Rates, Sight

_ANSWER_S = 10.0


class Viewer(Protocol):
    def show(self, sight: Sight, rates: Rates | None) -> None: ...

    def lose(self, why: str) -> None:
        """Nothing newer is known for now."""
        ...


async def look(socket: Path) -> Sight:
    """How it stands now.

    Raises:
        ConnectionLostError: none is there, or it does not answer.
        RpcError: it refuses to tell.
    """
    async with connect(socket) as client:
        return await _ask(client)


async def measure(socket: Path, interval_s: float) -> tuple[Sight, Rates | None]:
    """How it stands, and what it has done within an interval. Raises as `look`."""
    history = History()
    async with connect(socket) as client:
        history.take((await _ask(client)).stats)
        await trio.sleep(interval_s)
        sight = await _ask(client)
    return sight, history.take(sight.stats)


async def follow(socket: Path, interval_s: float, viewer: Viewer) -> None:
    """Until cancelled, whatever happens to the supervisor."""
    while True:
        # Another supervisor counts from zero.
        history = History()
        try:
            async with connect(socket) as client:
                while True:
                    sight = await _ask(client)
                    viewer.show(sight, history.take(sight.stats))
                    await trio.sleep(interval_s)
        except (ConnectionLostError, RpcError) as error:
            viewer.lose(str(error))
        await trio.sleep(interval_s)


async def _ask(client: Client) -> Sight:
    try:
        with trio.fail_after(_ANSWER_S):
            stats = await client.call("server/stats")
            listed = await client.call("model/list")
    except trio.TooSlowError:
        raise ConnectionLostError(f"the supervisor did not answer within {_ANSWER_S:.0f} s") from None
    except msgspec.ValidationError as error:
        raise ConnectionLostError(f"the supervisor is of another version: {error}") from None
    return Sight(stats=stats, models=listed.models)
