"""Requests for tests, with everything that a test does not care about filled in."""

import itertools

import trio

from mlxsup.protocol.generation import Priority
from mlxsup.protocol.worker_link import Generate, Sampling
from mlxsup.supervisor.generation.request import GenerationRequest
from tests.fakes.collecting_sink import CollectingSink

_ids = itertools.count(1)

GREEDY = Sampling(
    temperature=0.0,
    top_p=1.0,
    top_k=0,
    min_p=0.0,
    repetition_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    seed=1,
)


def make_request(
    sink: CollectingSink,
    *,
    prompt: str = "p",
    tokens: int = 3,
    priority: Priority = Priority.NORMAL,
    client: str = "c",
    now_s: float | None = None,
    deadline_s: float | None = None,
) -> GenerationRequest:
    return GenerationRequest(
        id=next(_ids),
        model="m",
        order=Generate(max_tokens=tokens, sampling=GREEDY, prompt=prompt),
        priority=priority,
        client=client,
        stream=True,
        sink=sink,
        observer=sink,
        now_s=trio.current_time() if now_s is None else now_s,
        deadline_s=deadline_s,
    )


def prompt_of(request: GenerationRequest) -> str | None:
    assert isinstance(request.order, Generate)
    return request.order.prompt
