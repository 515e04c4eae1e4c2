"""Whatever clients, requests and time do: each is answered once and whole, no bound is exceeded, nobody computes in vain."""

import math
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import FinishReason, GenerationResult
from mlxsup.supervisor.generation.attachments import Limits
from mlxsup.supervisor.generation.request import GenerationRequest
from tests.fakes.requests import prompt_of
from tests.unit.generation.attaching import Client, Desk

LIMITS = Limits(
    reattach_s=5.0, attached_max=3, results_kept_max=2, results_kept_bytes_max=4500, result_kept_s=20.0
)
keys = st.sampled_from(["k1", "k1", "k2", "k3"])
# Seldom another order under the same key.
prompts = st.sampled_from(["p"] * 7 + ["q"])
texts = st.sampled_from(["a", "bc", "é", "d" * 300, ""])


class Attaching(RuleBasedStateMachine):
    clients = Bundle("clients")

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk(LIMITS)
        self.sent: list[Client] = []
        # Since when nobody has been attached to a request.
        self.alone_s: dict[int, float] = {}
        self.cancelled_by: dict[int, Client] = {}

    @property
    def open(self) -> list[GenerationRequest]:
        return [request for request in self.desk.requests if not request.ended]

    def waiting_for(self, request: GenerationRequest) -> list[Client]:
        return [client for client in self.sent if client.request is request and not client.attachment.ended]

    # What clients do.

    @rule(
        target=clients,
        key=keys,
        prompt=prompts,
        stream=st.booleans(),
        deadline_s=st.sampled_from([None, None, 1.0, 7.0]),
    )
    def send(self, key: str, prompt: str, stream: bool, deadline_s: float | None) -> Any:
        before = len(self.desk.requests)
        refused: RpcError | None = None
        try:
            client = self.desk.send(prompt, key=key, stream=stream, deadline_s=deadline_s)
        except RpcError as error:
            refused = error
        if refused is not None:
            assert refused.kind in (ErrorKind.INVALID_PARAMS, ErrorKind.LIMIT_EXCEEDED)
            assert len(self.desk.requests) == before
            return multiple()
        self.sent.append(client)
        if client.request is not None:
            assert client.request not in self.desk.cancelled, "attached to what is being cancelled"
            assert prompt_of(client.request) == prompt
        else:
            self.check_kept(client)
        return client

    def check_kept(self, client: Client) -> None:
        """It was answered at once: with what an older one of its key and order has given."""
        (outcome,) = client.sink.outcomes
        assert isinstance(outcome, GenerationResult)
        assert outcome.finish_reason is FinishReason.STOP
        assert any(
            outcome.text == request.text and prompt_of(request) == client.prompt
            for request in self.desk.requests
            if request.ended and request not in self.desk.cancelled
        )

    @rule(client=clients)
    def cancel(self, client: Client) -> None:
        waiting = not client.attachment.ended
        others = client.request is not None and len(self.waiting_for(client.request)) > 1
        self.desk.book.cancel(client.attachment, self.desk.now_s)
        if waiting and others:
            (outcome,) = client.sink.outcomes
            assert isinstance(outcome, GenerationResult)
            assert outcome.finish_reason is FinishReason.CANCELLED
        elif waiting and client.request is not None:
            assert client.request in self.desk.cancelled
            self.cancelled_by[client.request.id] = client

    @rule(client=consumes(clients))
    def leave(self, client: Client) -> None:
        client.has_left = client.has_left or not client.attachment.ended
        self.desk.book.leave(client.attachment, self.desk.now_s)

    # What requests do.

    @precondition(lambda self: self.open)
    @rule(data=st.data(), text=texts)
    def deliver(self, data: st.DataObject, text: str) -> None:
        self.desk.deliver(text, data.draw(st.sampled_from(self.open)))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), how=st.sampled_from(["finish", "finish", "fail", "end_cancelled"]))
    def end(self, data: st.DataObject, how: str) -> None:
        request = data.draw(st.sampled_from(self.open))
        waiting = self.waiting_for(request)
        getattr(self.desk, how)(request)
        assert all(len(client.sink.outcomes) == 1 for client in waiting)

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 4.9, 5.0, 20.0]))
    def pass_time(self, seconds: float) -> None:
        self.desk.pass_time(seconds)
        assert self.desk.book.next_look_s > self.desk.now_s

    # What always holds.

    @invariant()
    def each_has_got_what_its_request_has(self) -> None:
        for client in self.sent:
            if client.attachment.ended or client.request is None:
                continue
            assert client.got == (client.request.text if client.attachment.stream else "")

    @invariant()
    def each_is_answered_once_and_whole(self) -> None:
        for client in self.sent:
            outcomes = client.sink.outcomes
            assert len(outcomes) == (client.attachment.ended and not client.has_left)
            for outcome in outcomes:
                if isinstance(outcome, GenerationResult) and client.attachment.stream:
                    assert client.got == outcome.text
            if not client.attachment.stream:
                assert client.sink.pieces == []

    @invariant()
    def nobody_waits_for_what_has_ended(self) -> None:
        assert not [request for request in self.desk.requests if request.ended and self.waiting_for(request)]

    @invariant()
    def bounds_are_kept(self) -> None:
        stats = self.desk.book.stats()
        assert stats.results_kept <= LIMITS.results_kept_max
        assert stats.results_kept_bytes <= LIMITS.results_kept_bytes_max
        assert (stats.results_kept == 0) == (stats.results_kept_bytes == 0)
        assert all(len(self.waiting_for(request)) <= LIMITS.attached_max for request in self.open)
        wanted = [request for request in self.open if request not in self.desk.cancelled]
        assert stats.running == len(wanted)
        assert stats.attached == sum(len(self.waiting_for(request)) for request in self.open)
        assert stats.abandoned == sum(not self.waiting_for(request) for request in wanted)

    @invariant()
    def what_nobody_waits_for_is_cancelled_in_time_and_nothing_else_is(self) -> None:
        for request in self.open:
            if self.waiting_for(request):
                self.alone_s.pop(request.id, None)
                continue
            since_s = self.alone_s.setdefault(request.id, self.desk.now_s)
            is_over = self.desk.now_s >= since_s + LIMITS.reattach_s
            assert (request in self.desk.cancelled) >= is_over
        for request in self.desk.cancelled:
            # At most the one whose cancel it was.
            assert self.waiting_for(request) in ([], [self.cancelled_by.get(request.id)])

    def teardown(self) -> None:
        for request in self.open:
            self.desk.finish(request)
        self.each_is_answered_once_and_whole()
        # When a result came is known to a microsecond.
        self.desk.pass_time(LIMITS.result_kept_s + 0.001)
        assert self.desk.book.stats().results_kept == 0
        assert self.desk.book.next_look_s == math.inf


TestAttaching = Attaching.TestCase
TestAttaching.settings = settings(max_examples=150, stateful_step_count=40)
