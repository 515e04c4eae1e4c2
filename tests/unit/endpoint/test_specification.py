"""Every example of the JSON-RPC 2.0 specification, section 7, holds on both framings."""

from typing import Any

import msgspec
import pytest
from trio.testing import MockClock

from mlxsup.protocol.framing import HEADERS, LINES, Framing
from mlxsup.protocol.methods import METHODS, Method
from mlxsup.supervisor.model_methods import Handler
from tests.unit.endpoint.in_memory import memory_supervisor

PARSE_ERROR = {"code": -32700, "message": "Parse error"}
INVALID_REQUEST = {"code": -32600, "message": "Invalid Request"}
METHOD_NOT_FOUND = {"code": -32601, "message": "Method not found"}


class Operands(msgspec.Struct, frozen=True):
    minuend: int
    subtrahend: int


class Summands(msgspec.Struct, frozen=True):
    a: int
    b: int
    c: int


class Nothing(msgspec.Struct, frozen=True):
    pass


async def subtract(params: Operands, _: object) -> int:
    return params.minuend - params.subtrahend


async def add(params: Summands, _: object) -> int:
    return params.a + params.b + params.c


async def get_data(_: Nothing, __: object) -> list[Any]:
    return ["hello", 5]


HANDLERS: dict[str, tuple[type[Any], Handler]] = {
    "subtract": (Operands, subtract),
    "sum": (Summands, add),
    "get_data": (Nothing, get_data),
}


def call(method: str, params: str | None = None, id: str | None = None) -> str:
    """A request as the specification writes it."""
    members = [f'"method": "{method}"', f'"params": {params}' if params else "", f'"id": {id}' if id else ""]
    return '{"jsonrpc": "2.0", ' + ", ".join(filter(None, members)) + "}"


def result(id: int | str, value: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "result": value, "id": id}


def error(id: int | str | None, error: dict[str, Any]) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "error": error, "id": id}


# What is sent, and the frames that come back; where there are none, nothing does.
EXAMPLES: dict[str, tuple[str, list[Any]]] = {
    "positional parameters": (call("subtract", "[42, 23]", "1"), [result(1, 19)]),
    "positional parameters the other way round": (call("subtract", "[23, 42]", "2"), [result(2, -19)]),
    "named parameters": (call("subtract", '{"subtrahend": 23, "minuend": 42}', "3"), [result(3, 19)]),
    "named parameters in another order": (
        call("subtract", '{"minuend": 42, "subtrahend": 23}', "4"),
        [result(4, 19)],
    ),
    "a notification": (call("update", "[1,2,3,4,5]"), []),
    "a notification without parameters": (call("foobar"), []),
    "a method that does not exist": (call("foobar", id='"1"'), [error("1", METHOD_NOT_FOUND)]),
    "invalid JSON": (
        '{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]',
        [error(None, PARSE_ERROR)],
    ),
    "an invalid request": (
        '{"jsonrpc": "2.0", "method": 1, "params": "bar"}',
        [error(None, INVALID_REQUEST)],
    ),
    "a batch of invalid JSON": (
        f'[\n  {call("sum", "[1,2,4]", chr(34) + "1" + chr(34))},\n  {{"jsonrpc": "2.0", "method"\n]',
        [error(None, PARSE_ERROR)],
    ),
    "an empty array": ("[]", [error(None, INVALID_REQUEST)]),
    "an invalid batch that is not empty": ("[1]", [[error(None, INVALID_REQUEST)]]),
    "an invalid batch": ("[1,2,3]", [[error(None, INVALID_REQUEST)] * 3]),
    "a batch": (
        "[\n"
        + ",\n".join(
            [
                call("sum", "[1,2,4]", '"1"'),
                call("notify_hello", "[7]"),
                call("subtract", "[42,23]", '"2"'),
                '{"foo": "boo"}',
                call("foo.get", '{"name": "myself"}', '"5"'),
                call("get_data", id='"9"'),
            ]
        )
        + "\n]",
        [
            [
                result("1", 7),
                result("2", 19),
                error(None, INVALID_REQUEST),
                error("5", METHOD_NOT_FOUND),
                result("9", ["hello", 5]),
            ]
        ],
    ),
    "a batch of notifications only": (
        f"[{call('notify_sum', '[1,2,4]')},\n{call('notify_hello', '[7]')}]",
        [],
    ),
}


def canonical(message: Any) -> bytes:
    return msgspec.json.encode(message, order="sorted")


def without_data(message: Any) -> Any:
    """Our errors say more than the specification's; in a batch answers come in any order."""
    if isinstance(message, list):
        return sorted(map(without_data, message), key=canonical)
    if "error" in message:
        told = {name: value for name, value in message["error"].items() if name != "data"}
        return error(message["id"], told)
    return message


@pytest.mark.parametrize("framing", [LINES, HEADERS], ids=lambda framing: framing.name)
@pytest.mark.parametrize("example", EXAMPLES)
async def test_an_example_of_the_specification_holds(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, example: str, framing: Framing
) -> None:
    sent, expected = EXAMPLES[example]
    if framing is LINES:
        sent = sent.replace("\n", " ")
    async with memory_supervisor() as supervisor:
        for name, (params, handler) in HANDLERS.items():
            monkeypatch.setitem(METHODS, name, Method(name=name, params=params, result=object, summary=name))
            supervisor.service.handlers[name] = handler
        client = supervisor.connect(framing)
        await client.send(sent.encode())
        answers = await client.finish()

    assert [without_data(answer) for answer in answers] == [without_data(answer) for answer in expected]


def test_there_are_fifteen_examples() -> None:
    assert len(EXAMPLES) == 15
