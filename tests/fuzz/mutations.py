"""Frames as no honest client writes them, made from frames as one would. Pure but for the given random numbers."""

import itertools
import json
import random
from collections.abc import Callable
from typing import Any

Frame = bytes
Mutation = Callable[[random.Random, Frame, Frame], Frame]

_CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1]}'}}
_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
_MESSAGES = [
    {"role": "user", "content": "hé 😀"},
    {"role": "assistant", "content": None, "tool_calls": [_CALL]},
]
_TEXT = {"model": "m", "prompt": "p", "max_tokens": 2}
_CALLS: list[tuple[str, Any]] = [
    ("server/info", {}),
    ("server/health", None),
    ("server/stats", []),
    ("server/subscribe", {"topics": ["worker", "model"]}),
    ("rpc.discover", {}),
    ("model/list", {}),
    ("model/load", {"model": "m", "pin": True, "options": {"context_tokens_max": 64}}),
    ("model/unload", ["m"]),
    ("generate", _TEXT | {"stream": True, "temperature": 0.5, "stop": ["a"], "logit_bias": {"5": 1.5}}),
    ("generate", _TEXT | {"priority": "high", "deadline_ms": 5000, "seed": -1, "client": "c"}),
    ("generate", {"model": "m", "prompt_tokens": [1, 2, 3], "max_tokens": 1}),
    ("chat", {"model": "m", "messages": _MESSAGES, "max_tokens": 2, "response_format": {"type": "text"}}),
    (
        "chat",
        {
            "model": "m",
            "messages": _MESSAGES,
            "max_tokens": 2,
            "tools": [_TOOL],
            "tool_choice": "auto",
            "logprobs": 1,
        },
    ),
    ("chat", ["m", _MESSAGES, 1]),
    ("embed", {"model": "m", "input": ["a", "b"]}),
    ("tokenize", {"model": "m", "text": "x"}),
    ("detokenize", {"model": "m", "tokens": [1, 2]}),
    ("no/method", {"a": 1}),
]
_FRAGMENTS = [
    b"NaN", b"-Infinity", b"1e999", b"-0", b"0.1e-400", b"9" * 400, b"9" * 4400, b"null", b"true", b'""', b"{}", b"[]",
    b"[" * 40, b"]" * 40, b'{"a":' * 40, b'"', b"\\", b"\\ud800", b"\\u0000", b"\x00", b"\xff", b"\xc0\xaf", b"\xed\xa0\x80",
    b"\xef\xbb\xbf", b"\n", b"\r\n", b"\n\n", b" ", b",", b":", b'"id":1,', b'"id":null,', b'"id":"x",', b'"jsonrpc":"1.0",',
    b"Content-Length: 5\r\n\r\n", b"Content-Length: -1\r\n\r\n", b"/*x*/", b"server/shutdown", b"$/cancelRequest",
]  # fmt: skip
_NUMBERS = [
    b"0",
    b"-1",
    b"1e999",
    b"-1e-999",
    b"1.5",
    b"9007199254740993",
    b"9" * 400,
    b"9" * 4000,
    b"9" * 4400,
    b"NaN",
    b"0x10",
    b"01",
]
_DEPTHS = [10, 120, 127, 128, 129, 500, 990, 1000, 3000]


class FrameMaker:
    """An endless supply; the ids of the frames that it makes are all different."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._numbers = itertools.count(1)

    def intact(self) -> tuple[str, Frame]:
        """A good request, and its id."""
        id = f"intact {next(self._numbers)}"
        return id, self._request(id)

    def mutated(self) -> Frame:
        rng = self._rng
        frame, other = self._good(), self._good()
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            frame = rng.choice(_MUTATIONS)(rng, frame, other)
        return frame

    def _good(self) -> Frame:
        rng = self._rng
        id = next(self._numbers)
        kind = rng.random()
        if kind < 0.1:
            cancelled = rng.choice((id - 1, id + 1, str(id), "intact"))
            return _json({"jsonrpc": "2.0", "method": "$/cancelRequest", "params": {"id": cancelled}})
        if kind < 0.2:
            requests = [self._request(next(self._numbers)) for _ in range(rng.randint(1, 4))]
            return b"[" + b",".join(requests) + b"]"
        return self._request(rng.choice((id, id, str(id), -id)))

    def _request(self, id: int | str) -> Frame:
        method, params = self._rng.choice(_CALLS)
        request = {"jsonrpc": "2.0", "id": id, "method": method}
        return _json(request if params is None else request | {"params": params})


def _json(value: Any) -> Frame:
    return json.dumps(value, ensure_ascii=False).encode()


def _flip_bits(rng: random.Random, frame: Frame, _: Frame) -> Frame:
    flipped = bytearray(frame)
    for _bit in range(rng.randint(1, 8)):
        if flipped:
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def _truncate(rng: random.Random, frame: Frame, _: Frame) -> Frame:
    return frame[: rng.randrange(len(frame) + 1)]


def _cut_out(rng: random.Random, frame: Frame, _: Frame) -> Frame:
    start = rng.randrange(len(frame) + 1)
    return frame[:start] + frame[start + rng.randrange(20) :]


def _repeat(rng: random.Random, frame: Frame, _: Frame) -> Frame:
    start = rng.randrange(len(frame) + 1)
    piece = frame[start : start + rng.randrange(60)]
    return frame[:start] + piece * rng.choice((2, 3, 50)) + frame[start:]


def _splice(rng: random.Random, frame: Frame, other: Frame) -> Frame:
    return frame[: rng.randrange(len(frame) + 1)] + other[rng.randrange(len(other) + 1) :]


def _insert(rng: random.Random, frame: Frame, _: Frame) -> Frame:
    place = rng.randrange(len(frame) + 1)
    return frame[:place] + rng.choice(_FRAGMENTS) + frame[place:]


def _change_number(rng: random.Random, frame: Frame, _: Frame) -> Frame:
    places = [place for place, byte in enumerate(frame) if 0x30 <= byte <= 0x39]
    if not places:
        return frame
    place = rng.choice(places)
    return frame[:place] + rng.choice(_NUMBERS) + frame[place + 1 :]


def _nest(rng: random.Random, frame: Frame, _: Frame) -> Frame:
    """Some value becomes a deep one; sometimes it is never closed."""
    depth = rng.choice(_DEPTHS)
    opened, closed = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
    deep = opened * depth + b"1" + closed * rng.choice((depth, depth, depth - 1, 0))
    colons = [place for place, byte in enumerate(frame) if byte == 0x3A]
    if not colons:
        return deep
    place = rng.choice(colons) + 1
    return frame[:place] + deep + b',"x":' + frame[place:]


def _double_id(rng: random.Random, frame: Frame, _: Frame) -> Frame:
    id = _json(rng.choice((0, 7, -1, "x", "intact", None, 1.5, [1], 2**53, 2**70, "y" * 200, "é" * 65)))
    brace = frame.rfind(b"}") if rng.random() < 0.5 else -1
    if brace < 0:
        return frame.replace(b"{", b'{"id":' + id + b",", 1)
    return frame[:brace] + b',"id":' + id + frame[brace:]


def _wrap(rng: random.Random, frame: Frame, other: Frame) -> Frame:
    before, between, after = rng.choice(
        (
            (b"[", b",", b"]"),
            (b"[[", b",", b"]]"),
            (b" ", b"\n", b" "),
            (b'{"a":', b",", b"}"),
            (b"[", b",1,", b",]"),
        )
    )
    return before + frame + between + other + after


def _grow(rng: random.Random, frame: Frame, _: Frame) -> Frame:
    """Rarely beyond what the server takes in one frame."""
    size = rng.choice((1_000, 10_000)) if rng.random() < 0.9 else 70_000
    place = rng.randrange(len(frame) + 1)
    return (
        frame[:place] + rng.choice((b"x", b" ", b"[", b"\\", b"\xe2\x82\xac", b'"",')) * size + frame[place:]
    )


_MUTATIONS: list[Mutation] = [
    *(_flip_bits, _truncate, _cut_out, _repeat, _splice, _insert, _insert, _change_number, _double_id) * 4,
    *(_nest, _wrap) * 3,
    _grow,
]
