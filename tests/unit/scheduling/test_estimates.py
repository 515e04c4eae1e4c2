"""Costs, speeds and waits are learned from what has been computed."""

import random
from typing import Any

import pytest

from mlxsup.protocol.generation import ImagePart, ImageUrl, Message, PastCall, PastFunction, TextPart
from mlxsup.protocol.worker_link import Embed, Generate
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.scheduling.costs import CostModel
from mlxsup.supervisor.scheduling.forecast import Outlook, retry_after_ms, wait_s
from mlxsup.supervisor.scheduling.speed import Speed
from tests.fakes.collecting_sink import CollectingSink
from tests.fakes.requests import GREEDY, make_request


def order(prompt: str | None = None, max_tokens: int = 100, **more: Any) -> Generate:
    return Generate(max_tokens=max_tokens, sampling=GREEDY, prompt=prompt, **more)


def asking(order: Generate) -> GenerationRequest:
    request = make_request(CollectingSink(), now_s=0.0)
    request.order = order
    return request


def test_a_prompt_of_tokens_is_counted_and_one_of_text_is_estimated() -> None:
    costs = CostModel()

    assert costs.prompt_tokens(asking(order(prompt_tokens=[1, 2, 3]))) == 3
    assert costs.prompt_tokens(asking(order("x" * 400))) == 100
    chat = [Message(role="user", content="x" * 400), Message(role="assistant", content=None)]
    assert costs.prompt_tokens(asking(order(messages=chat))) == 108


def test_the_tools_that_a_model_is_told_of_and_earlier_calls_are_part_of_its_prompt() -> None:
    costs = CostModel()
    function = {"name": "f", "description": "x" * 1000}
    tools = [{"type": "function", "function": function}]
    chat = [Message(role="user", content="x" * 400)]
    plain = costs.prompt_tokens(asking(order(messages=chat)))
    past = PastCall(id="1", type="function", function=PastFunction(name="f", arguments="x" * 999))
    called = [*chat, Message(role="assistant", tool_calls=[past])]

    assert costs.prompt_tokens(asking(order(messages=chat, tools=tools))) == pytest.approx(plain + 266, abs=8)
    assert costs.prompt_tokens(asking(order(messages=chat, tools=tools, tool_choice="none"))) == plain
    assert costs.prompt_tokens(asking(order(messages=called))) == plain + 250 + 4


def test_what_an_image_takes_is_learned_and_says_nothing_of_text() -> None:
    costs = CostModel()
    image = ImagePart(ImageUrl("data:,"))
    seeing = [Message(role="user", content=[TextPart("x" * 400), image, image])]
    text = costs.prompt_tokens(asking(order("x" * 400)))
    assert costs.prompt_tokens(asking(order(messages=seeing))) > text + 1000
    for _ in range(100):
        costs.learn(asking(order(messages=seeing)), 704, 10)

    assert costs.prompt_tokens(asking(order(messages=seeing))) == pytest.approx(704, abs=1)
    assert costs.prompt_tokens(asking(order("x" * 400))) == text


def test_texts_to_be_embedded_cost_what_they_have_together_and_get_no_answer() -> None:
    costs = CostModel()
    costs.context_tokens = 200
    texts = Embed(texts=["x" * 400] * 10)
    request = asking(order())
    request.order = texts

    assert costs.prompt_tokens(request) == 1000
    assert costs.tokens_left(texts, 0) == 0
    costs.learn(request, 2000, 0)
    assert 1000 < costs.prompt_tokens(request) <= 2000
    assert costs.answer_tokens(order(max_tokens=1)) == 1


def test_the_speed_of_a_model_that_only_embeds_is_learned() -> None:
    speed = Speed()
    for second in range(60):
        speed.note_embedded(500, float(second), loaded=True)

    assert speed.is_known
    assert speed.seconds(1000 * speed.ratio) == pytest.approx(2.0, rel=0.05)


def test_how_long_a_token_is_and_an_answer_becomes_is_learned() -> None:
    costs = CostModel()
    assert costs.answer_tokens(order(max_tokens=1000)) == 1000
    for _ in range(400):
        costs.learn(asking(order("x" * 300, max_tokens=1000)), 100, 40)

    assert costs.prompt_tokens(asking(order("x" * 600))) == pytest.approx(200, abs=1)
    assert costs.answer_tokens(order(max_tokens=900)) == 40
    assert costs.answer_tokens(order(max_tokens=20)) == 20
    assert costs.tokens_left(order(max_tokens=900), 30) == pytest.approx(10, abs=1)
    assert 1.0 <= costs.tokens_left(order(max_tokens=900), 60) < 10.0


def test_of_short_chats_it_is_the_template_that_is_learned_and_not_how_long_a_token_is() -> None:
    costs = CostModel()
    hi, long = (order(messages=[Message(role="user", content=content)]) for content in ("hi", "x" * 4000))
    for _ in range(400):
        costs.learn(asking(hi), 31, 10)
    assert costs.prompt_tokens(asking(hi)) == pytest.approx(31, abs=1)
    assert costs.prompt_tokens(asking(long)) == pytest.approx(1031, rel=0.1)

    for _ in range(400):
        costs.learn(asking(hi), 31, 10)
        costs.learn(asking(long), 831, 10)
    assert costs.prompt_tokens(asking(hi)) == pytest.approx(31, abs=1)
    assert costs.prompt_tokens(asking(long)) == pytest.approx(831, rel=0.01)


def test_the_parts_of_a_prompt_are_counted_once() -> None:
    parts = ["é" * 5, "x" * 395]
    counted = Message(role="user", content=[TextPart(text=part) for part in parts])
    request, costs = asking(order(messages=[counted])), CostModel()
    assert costs.prompt_tokens(request) == 104

    counted.content.clear()  # type: ignore[union-attr]
    assert costs.prompt_tokens(request) == 104


def test_nothing_has_more_tokens_than_the_context() -> None:
    costs = CostModel()
    costs.context_tokens = 8192
    boundless = order("x" * 100_000, max_tokens=1 << 24)
    assert (costs.prompt_tokens(asking(boundless)), costs.answer_tokens(boundless)) == (8192, 8192)
    assert (costs.answer_tokens_likely_max(boundless), costs.tokens_left(boundless, 192)) == (8192, 8000.0)

    costs.learn(asking(order("x" * 100, max_tokens=1 << 24)), 25, 40)
    assert costs.answer_tokens(boundless) == (4096 + 40) / 2
    assert costs.tokens_left(boundless, 9000) == 0.0


@pytest.mark.parametrize(("prompt_s", "answer_s"), [(0.001, 0.02), (0.004, 0.005), (0.0, 0.01)])
def test_what_a_token_of_a_prompt_and_of_an_answer_takes_is_found_from_mixed_steps(
    prompt_s: float, answer_s: float
) -> None:
    chance, speed, now_s = random.Random(1), Speed(), 0.0
    for _ in range(2000):
        prompt = chance.choice([0, 0, 0, 50, 300])
        answers = chance.randrange(1, 17)
        now_s += (prompt * prompt_s + answers * answer_s) * chance.uniform(0.9, 1.1)
        speed.note_step(prompt, answers, now_s, loaded=True)

    assert speed.seconds(100) == pytest.approx(100 * answer_s, rel=0.1)
    assert speed.ratio == pytest.approx(max(1 / 64, prompt_s / answer_s), rel=0.25)


def test_nothing_is_learned_of_speed_while_nobody_waits_or_nothing_is_computed() -> None:
    speed = Speed()
    for step in range(100):
        speed.note_step(0, 1, step * 0.1, loaded=False)
    assert not speed.is_known

    speed.note_step(0, 8, 100.0, loaded=True)
    speed.rest()
    speed.note_step(0, 8, 500.0, loaded=True)
    speed.note_step(0, 8, 500.5, loaded=True)
    speed.note_step(0, 8, 501.0, loaded=True)
    assert speed.seconds(16) == pytest.approx(1.0, rel=0.05)


def test_nobody_waits_while_there_is_a_place() -> None:
    assert wait_s(running_s=9.0, ahead_s=0.0, typical_s=1.0, places=4, taken=3) == 0.0


@pytest.mark.parametrize("queued", [0, 1, 5, 40, 200])
@pytest.mark.parametrize("places", [1, 4, 16])
def test_a_predicted_wait_is_near_what_a_batch_that_shares_the_machine_makes_of_it(
    queued: int, places: int
) -> None:
    """Against a simulation: places that share the machine evenly, and requests of random size that begin when one is free."""
    ratios = []
    for seed in range(20):
        chance = random.Random(seed)
        running = [chance.uniform(0.0, 2.0) for _ in range(places)]
        waiting = [chance.uniform(0.5, 1.5) for _ in range(queued)]
        predicted = wait_s(
            running_s=sum(running), ahead_s=sum(waiting), typical_s=1.0, places=places, taken=places
        )
        ratios.append(predicted / _simulated_wait_s(running, waiting))

    ratios.sort()
    if queued >= 2 * places:
        assert all(0.5 < ratio < 2.0 for ratio in ratios)
    # One that is next waits for chance; no more than an order of magnitude is promised.
    assert 0.1 < ratios[len(ratios) // 2] < 10.0


def _simulated_wait_s(running: list[float], waiting: list[float]) -> float:
    running, waiting, now_s = list(running), list(waiting), 0.0
    while True:
        shortest = min(running)
        now_s += shortest * len(running)
        running = [left - shortest for left in running]
        running.remove(min(running))
        if not waiting:
            return now_s
        running.append(waiting.pop(0))


def test_a_hint_is_never_nothing_and_is_a_second_where_nothing_is_known() -> None:
    assert retry_after_ms(None) == 1000
    assert retry_after_ms(Outlook(wait_s=0.0, service_s=0.0)) == 1
    assert retry_after_ms(Outlook(wait_s=2.0, service_s=0.5)) == 2500
