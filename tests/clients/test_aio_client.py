"""The Python client for Trio."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from mlxsup.protocol.client.aio import Client, ConnectionLostError, RpcError, connect, spawn
from mlxsup.protocol.client.exchange import Notification
from mlxsup.protocol.errors import ErrorKind
from mlxsup.protocol.generation import FinishReason, TokenLogprob
from mlxsup.protocol.service import Event, Progress
from tests.clients.conftest import LIMIT_S, limited, question, the_only_child

pytestmark = pytest.mark.slow

LONG = "Tell me everything about France."


@pytest.fixture
async def client(server: Path) -> AsyncIterator[Client]:
    with trio.fail_after(LIMIT_S):
        async with connect(server) as client:
            yield client


@pytest.fixture
def stdio(mlxsup: str, as_user: None) -> list[str]:
    return limited(mlxsup, "stdio")


async def test_a_stream_gives_pieces_that_together_are_the_text_of_its_result(
    client: Client, model: str
) -> None:
    async with client.stream("chat", question(model)) as stream:
        pieces = [piece async for piece in stream]

    assert len(pieces) > 1
    assert stream.result is not None
    assert "".join(pieces) == stream.result.text
    assert "Paris" in stream.result.text


async def test_delta_by_delta_a_stream_has_all_that_its_result_has(client: Client, model: str) -> None:
    texts = []
    logprobs: list[TokenLogprob] = []
    async with client.stream("chat", {**question(model), "logprobs": 1}) as stream:
        while (delta := await stream.next_delta()) is not None:
            texts.append(delta.text)
            logprobs += delta.logprobs

    assert stream.result is not None
    assert "".join(texts) == stream.result.text
    assert logprobs == stream.result.logprobs != []


async def test_each_of_several_streams_at_once_gets_its_own_text(client: Client, model: str) -> None:
    texts: dict[str, list[str]] = {}
    results: dict[str, str] = {}
    begun = trio.Event()

    async def follow(word: str) -> None:
        params = question(model, f"Say something about {word}.", max_tokens=24)
        async with client.stream("chat", params) as stream:
            async for piece in stream:
                texts.setdefault(word, []).append(piece)
                if len(texts) == 4:
                    begun.set()
                # Nobody ends before all have begun: they are served side by side, or this never ends.
                await begun.wait()
        assert stream.result is not None
        results[word] = stream.result.text

    async with trio.open_nursery() as nursery:
        for word in ("rain", "bread", "cats", "gold"):
            nursery.start_soon(follow, word)

    assert {word: "".join(pieces) for word, pieces in texts.items()} == results
    assert len(set(results.values())) == 4


async def test_a_cancelled_stream_ends_with_the_text_so_far(client: Client, model: str) -> None:
    pieces = []
    async with client.stream("chat", question(model, LONG, max_tokens=4096)) as stream:
        async for piece in stream:
            pieces.append(piece)
            stream.cancel()

    assert stream.result is not None
    assert stream.result.finish_reason is FinishReason.CANCELLED
    assert stream.result.text == "".join(pieces)


async def test_a_stream_that_is_left_early_is_cancelled_at_the_server(client: Client, model: str) -> None:
    before = (await client.call("server/stats")).overall.ended.get("cancelled", 0)
    async with client.stream("chat", question(model, LONG, max_tokens=4096)) as stream:
        async for _ in stream:
            break
    # Served after that one's cancellation, which the same worker took first.
    await client.call("chat", question(model, max_tokens=1))

    stats = await client.call("server/stats")
    assert stats.overall.ended["cancelled"] == before + 1
    assert stats.overall.requests_active == 0


async def test_an_error_is_raised_as_it_was_answered_and_the_connection_lives_on(
    client: Client, model: str
) -> None:
    with pytest.raises(RpcError, match="temprature") as caught:
        await client.call("chat", {**question(model), "temprature": 1})

    assert caught.value.kind is ErrorKind.INVALID_PARAMS
    assert (await client.call("server/health")).live


async def test_a_load_tells_its_progress_to_the_one_who_asked_and_its_states_to_listeners(
    client: Client, model: str
) -> None:
    heard: list[Notification] = []
    phases = []

    def note(notification: Notification) -> None:
        assert isinstance(notification, Progress)
        phases.append(notification.value["phase"])

    client.listen(heard.append)
    await client.call("server/subscribe", {"topics": ["worker"]})
    await client.call("model/unload", {"model": model})
    entry = await client.call("model/load", {"model": model}, note)

    assert entry.state == "ready"
    assert list(dict.fromkeys(phases)) == ["weights", "tokenizer", "warm"]
    states = [event.what for event in heard if isinstance(event, Event) and event.model == model]
    assert states[-4:] == ["spawning", "loading", "warming", "ready"]


async def test_a_spawned_server_ends_with_the_block(stdio: list[str]) -> None:
    with trio.fail_after(LIMIT_S):
        async with spawn(stdio) as client:
            child = the_only_child("stdio")
            assert (await client.call("server/health")).live

    assert not child.is_running()


async def test_an_error_of_the_block_comes_out_of_it_as_it_is(server: Path) -> None:
    with pytest.raises(RpcError, match="Method not found"), trio.fail_after(LIMIT_S):
        async with connect(server) as client:
            await client.call("no/such")


async def test_a_server_killed_in_mid_answer_is_a_lost_connection(stdio: list[str], model: str) -> None:
    with trio.fail_after(LIMIT_S):
        async with spawn(stdio) as client:
            async with client.stream("chat", question(model, LONG, max_tokens=4096)) as stream:
                await anext(stream)
                the_only_child("stdio").kill()
                with pytest.raises(ConnectionLostError):
                    async for _ in stream:
                        pass
            with pytest.raises(ConnectionLostError):
                await client.call("server/info")


async def test_nobody_who_listens_is_a_lost_connection(tmp_path: Path) -> None:
    with pytest.raises(ConnectionLostError, match="cannot connect"):
        async with connect(tmp_path / "nobody.sock"):
            pass
