"""A worker that lives in memory and on the mock clock: the worker protocol, paced, with faults when told.

It stands in for the process, not for the supervisor's side of it: streams, frames, signals and exit statuses are
as a real one has them.
"""

import math
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import trio
import trio.testing

from mlxsup.protocol import worker_link as link
from mlxsup.protocol.errors import RpcError
from mlxsup.protocol.framing import Frame, LineDecoder
from mlxsup.protocol.generation import FinishReason
from mlxsup.protocol.jsonrpc import Call, encode_error, encode_notification, encode_result, parse_message
from mlxsup.protocol.self_test import SelfTestResult

SIGNAL_KEY = "0af"
HELLO = link.Hello(
    pid=1, python="3", mlx="0", mlx_lm="0", device="cpu", orphan_watch=True, signal_key=SIGNAL_KEY
)
LOADED = link.Loaded(
    model_type="fake", context_tokens=100_000, weights_bytes=1, vocabulary_tokens=10, load_s=0.0
)


class Plan(msgspec.Struct, kw_only=True):
    """How one worker behaves. Times in seconds; `math.inf` never happens."""

    hello_s: float = 0.5
    load_s: float = 2.0
    token_s: float = 0.1
    load_error: RpcError | None = None
    ends_when_told_s: float = 0.0
    obeys_sigterm: bool = True
    garbage_s: float = math.inf
    beat_s: float = 1.0
    silent_s: float = math.inf
    """From then on nothing is heard of it, as of a stopped process."""
    stuck_s: float = math.inf
    """From then on its MLX thread finishes nothing, while its heartbeats go on."""
    load_answer: bytes | None = None
    """Instead of the proper one."""
    closes_output_s: float = math.inf
    closes_input_s: float = math.inf
    torn_s: float = math.inf
    """Then it writes half a frame, and goes on as if that were nothing."""
    text_lag_tokens: int = 0
    """So many tokens behind is the text, as with letters of several tokens; the last brings what is missing."""
    answers_questions: bool = False
    """Also `tokenize` and `detokenize`, with `question_tokens`."""
    embeddings_max: int | None = None
    """It answers with so many of those that it was asked for."""
    self_test: SelfTestResult | None = None
    """What it finds, after another `load_s`, when it is ordered to test itself."""


class MemoryWorker:
    """A `ChildProcess`. `tokens` of a request: its max_tokens, each with the text of its position."""

    make_pipe: Callable[[], tuple[Any, Any]] = staticmethod(trio.testing.memory_stream_one_way_pair)

    def __init__(self, pid: int, plan: Plan) -> None:
        self.pid = pid
        self.plan = plan
        self.returncode: int | None = None
        self.signals: list[signal.Signals] = []
        self.oom_killed = 0
        self.stopped = False
        self.hears_nothing = False
        self.stdin, self._incoming = self.make_pipe()
        self._outgoing, self.stdout = self.make_pipe()
        self.complaints, self.stderr = self.make_pipe()
        self.order: link.Load | None = None
        self.tuned: list[link.Tune] = []
        self.tests_asked = 0
        self._sequences: dict[int, link.Generate] = {}
        self._embeds: dict[int, link.Embed] = {}
        self._done: dict[int, int] = {}
        self._chars: dict[int, int] = {}
        # Of how many tokens the text is known, and that text.
        self._texts: dict[int, tuple[int, str]] = {}
        self._given = trio.Event()
        self._born_s = self._moved_s = trio.current_time()
        self._phase = "load"
        self._ended = trio.Event()
        self._life = trio.CancelScope()
        self._speaking = trio.Lock()

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def signal_group(self, number: signal.Signals) -> None:
        self.signals.append(number)
        if number is signal.SIGKILL or (number is signal.SIGTERM and self.plan.obeys_sigterm):
            self.die(-number)

    def oom_kills(self) -> int | None:
        return self.oom_killed

    def die(self, returncode: int) -> None:
        """End as the kernel ends a process: at once, its pipes closed."""
        if self.returncode is None:
            self.returncode = returncode
            self._life.cancel()
            self._ended.set()

    async def live(self) -> None:
        """What its main would do; run it in a nursery of the test."""
        try:
            with self._life:
                await self._main()
        finally:
            # A test that ends takes its workers with it.
            self.die(-signal.SIGKILL)
            for stream in (self._outgoing, self.complaints, self._incoming):
                stream.close()

    async def _main(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._misbehave)
            await trio.sleep(self.plan.hello_s)
            await self._say(encode_notification(link.HELLO, HELLO))
            nursery.start_soon(self._compute)
            nursery.start_soon(self._beat)
            await self._listen()
            await trio.sleep(self.plan.ends_when_told_s)
            self.die(0)

    async def _listen(self) -> None:
        decoder = LineDecoder(link.FRAME_BYTES_MAX)
        with suppress(trio.ClosedResourceError):
            while chunk := await self._incoming.receive_some():
                for event in decoder.feed(bytes(chunk)):
                    assert isinstance(event, Frame)
                    call = parse_message(event.data)
                    assert isinstance(call, Call)
                    await self._obey(call)
        if self.hears_nothing:
            await trio.sleep_forever()

    def close_input(self) -> None:
        """Hear nothing any more, and live on."""
        self.hears_nothing = True
        self._incoming.close()

    async def _obey(self, call: Call) -> None:
        match call.method:
            case link.LOAD:
                self.order = msgspec.json.decode(call.params or b"", type=link.Load)
                await self._load(_id(call), self.order)
            case link.SELF_TEST if self.plan.self_test is not None:
                self.tests_asked += 1
                await self._say(encode_result(_id(call), await self._test()))
            case link.TUNE:
                self.tuned.append(msgspec.json.decode(call.params or b"", type=link.Tune))
            case link.GENERATE:
                order = msgspec.json.decode(call.params or b"", type=link.Generate)
                self._sequences[_id(call)] = order
                self._done[_id(call)] = len(order.delivered_tokens)
                self._chars[_id(call)] = order.delivered_chars
                self._given.set()
                if len(order.delivered_tokens) >= order.max_tokens:
                    await self._say(self._answer(_id(call), FinishReason.LENGTH))
            case link.EMBED:
                self._embeds[_id(call)] = msgspec.json.decode(call.params or b"", type=link.Embed)
                self._done[_id(call)] = 0
                self._given.set()
            case link.CANCEL:
                cancel = msgspec.json.decode(call.params or b"", type=link.Cancel)
                if cancel.id in self._embeds:
                    await self._say(self._end_embed(cancel.id, FinishReason.CANCELLED))
                if cancel.id in self._sequences:
                    await self._drop(cancel.id, goes_on=cancel.goes_on)
            case link.TOKENIZE if self.plan.answers_questions:
                text = msgspec.json.decode(call.params or b"", type=link.Tokenize).text
                await self._say(encode_result(_id(call), link.Tokenized(tokens=question_tokens(text))))
            case link.DETOKENIZE if self.plan.answers_questions:
                tokens = msgspec.json.decode(call.params or b"", type=link.Detokenize).tokens
                await self._say(encode_result(_id(call), link.Detokenized(text=bytes(tokens).decode())))

    async def _load(self, id: int, order: link.Load) -> None:
        await trio.sleep(self.plan.load_s)
        if self.plan.load_answer is not None:
            await self._say(self.plan.load_answer % id)
        elif self.plan.load_error is not None:
            await self._say(encode_error(id, self.plan.load_error))
        else:
            tested = await self._test() if order.self_test else None
            self._phase = "idle"
            await self._say(encode_result(id, msgspec.structs.replace(LOADED, self_test=tested)))

    async def _test(self) -> SelfTestResult | None:
        if self.plan.self_test is not None:
            await trio.sleep(self.plan.load_s)
        return self.plan.self_test

    async def _beat(self) -> None:
        while True:
            await trio.sleep(self.plan.beat_s)
            await self._say(encode_notification(link.HEARTBEAT, self._heartbeat()))

    def _heartbeat(self) -> link.Heartbeat:
        now_s = trio.current_time()
        # Between two batches its loop turns, and finishes something, without being simulated.
        moved_s = self._moved_s if self._phase == "batch" else min(now_s, self._born_s + self._stuck_s())
        return link.Heartbeat(
            phase=self._phase,
            work=0,
            still_s=now_s - moved_s,
            sequences=len(self._sequences),
            active_bytes=0,
            cache_bytes=0,
            peak_bytes=0,
        )

    async def _compute(self) -> None:
        """A step every `token_s` since the hello, or since that changed, as long as there is anything to compute."""
        began_s = trio.current_time()
        token_s = self.plan.token_s
        steps = 0
        while True:
            while not (self._sequences or self._embeds) or self._lived_s() >= self._stuck_s():
                if self._phase == "batch" and not (self._sequences or self._embeds):
                    self._phase = "idle"
                self._given = trio.Event()
                await self._given.wait()
                # A step that is due right now takes it along.
                steps = math.ceil((trio.current_time() - began_s) / token_s - 1e-9) - 1
            if self.plan.token_s != token_s:
                began_s, token_s, steps = trio.current_time(), self.plan.token_s, 0
            steps += 1
            await trio.sleep_until(began_s + steps * token_s)
            if self._lived_s() >= self._stuck_s():
                continue
            self._moved_s = trio.current_time()
            self._phase = "batch" if self._sequences or self._embeds else "idle"
            await self._step()

    async def _step(self) -> None:
        deltas, answers = [], []
        for id, order in list(self._sequences.items()):
            position = self._done[id]
            self._computes(id, order, position)
            self._done[id] += 1
            ends = self._done[id] >= order.max_tokens
            deltas.append(link.Delta(id, self._more_text(id, order, ends=ends), [position]))
            if ends:
                answers.append(self._answer(id, FinishReason.LENGTH))
        answers += self._embed()
        if not (self._sequences or self._embeds):
            self._phase = "idle"
        steps = [encode_notification(link.STEP, link.Step(deltas=deltas))] if deltas else []
        if steps or answers:
            await self._say(*steps, *answers)

    def _embed(self) -> list[bytes]:
        """A text of each in a step."""
        for id in self._embeds:
            self._done[id] += 1
        over = [id for id, order in self._embeds.items() if self._done[id] == len(order.texts)]
        return [self._end_embed(id, FinishReason.STOP) for id in over]

    def _end_embed(self, id: int, finish: FinishReason) -> bytes:
        texts = self._embeds.pop(id).texts
        del self._done[id]
        vectors = [msgspec.Raw(msgspec.json.encode(embedding(text))) for text in texts]
        return encode_result(
            id,
            link.Generated(
                finish_reason=finish,
                prompt_tokens=len(texts),
                completion_tokens=0,
                embeddings=vectors[: self.plan.embeddings_max] if finish is FinishReason.STOP else [],
            ),
        )

    def _computes(self, id: int, order: link.Generate, position: int) -> None:
        """Is called for each token."""

    def _more_text(self, id: int, order: link.Generate, *, ends: bool) -> str:
        certain = self._done[id] - (0 if ends else self.plan.text_lag_tokens)
        known, text = self._texts.pop(id, (0, ""))
        text += "".join(token_text(order, position) for position in range(known, certain))
        self._texts[id] = (max(known, certain), text)
        said, self._chars[id] = self._chars[id], max(self._chars[id], len(text))
        return text[said:]

    def _answer(self, id: int, finish: FinishReason) -> bytes:
        del self._sequences[id], self._chars[id]
        self._texts.pop(id, None)
        return encode_result(
            id, link.Generated(finish_reason=finish, prompt_tokens=1, completion_tokens=self._done.pop(id))
        )

    async def _misbehave(self) -> None:
        if self.plan.closes_output_s < math.inf:
            await trio.sleep(self.plan.closes_output_s)
            await self._outgoing.aclose()
        if self.plan.closes_input_s < math.inf:
            await trio.sleep(self.plan.closes_input_s)
            self.close_input()
        if self.plan.garbage_s < math.inf:
            await trio.sleep(self.plan.garbage_s)
            await self._say(b"Segmentation fault? No: a print in a library")
        if self.plan.torn_s < math.inf:
            await trio.sleep(self.plan.torn_s)
            await self._tear()

    async def _tear(self) -> None:
        async with self._speaking:
            with suppress(trio.ClosedResourceError):
                await self._outgoing.send_all(b'{"jsonrpc":"2.0","method":"st')

    async def _drop(self, id: int, *, goes_on: bool) -> None:
        rest = "" if goes_on else self._more_text(id, self._sequences[id], ends=True)
        held = [encode_notification(link.STEP, link.Step(deltas=[link.Delta(id, rest, [])]))] if rest else []
        await self._say(*held, self._answer(id, FinishReason.CANCELLED))

    def _stuck_s(self) -> float:
        return min(self.plan.stuck_s, self.plan.silent_s)

    def _lived_s(self) -> float:
        return trio.current_time() - self._born_s

    async def _say(self, *frames: bytes) -> None:
        if self._lived_s() >= self.plan.silent_s:
            return
        async with self._speaking:
            with suppress(trio.ClosedResourceError):
                await self._outgoing.send_all(b"".join(frame + b"\n" for frame in frames))


def token_text(order: link.Generate, position: int) -> str:
    return f"{order.prompt}{position} "


def embedding(text: str) -> list[float]:
    return [len(text), 0.5]


def question_tokens(text: str) -> list[int]:
    return list(text.encode())


def full_text(prompt: str, tokens: int) -> str:
    """What a request for so many tokens of this prompt gives when nothing goes wrong."""
    return "".join(f"{prompt}{position} " for position in range(tokens))


def _id(call: Call) -> int:
    assert isinstance(call.id, int)
    return call.id


class WorkerShop:
    """Spawns `MemoryWorker`s into a nursery, each by the next plan; the last plan serves for all that follow."""

    def __init__(self, nursery: trio.Nursery, *plans: Plan) -> None:
        self._nursery = nursery
        self._plans = list(plans) or [Plan()]
        self.workers: list[MemoryWorker] = []
        self.spawn_errors: list[OSError] = []

    def by_pid(self, pid: int) -> MemoryWorker:
        return next(worker for worker in self.workers if worker.pid == pid)

    async def spawn(self) -> MemoryWorker:
        await trio.lowlevel.checkpoint()
        if self.spawn_errors:
            raise self.spawn_errors.pop(0)
        plan = self._plans.pop(0) if len(self._plans) > 1 else self._plans[0]
        worker = MemoryWorker(1000 + len(self.workers), plan)
        self.workers.append(worker)
        self._nursery.start_soon(worker.live)
        return worker
