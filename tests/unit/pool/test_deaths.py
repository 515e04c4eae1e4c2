"""A worker dies, and no client has to know; and where that can't be, each is told once and truly."""

import random
from contextlib import suppress

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from mlxsup.config.schema import Model, Recovery
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import GenerationResult, Priority
from tests.fakes.collecting_sink import CollectingSink
from tests.fakes.memory_worker import Plan, full_text
from tests.fakes.requests import make_request
from tests.unit.pool.conftest import SEED, OpenStage, Stage, open_stage, until

# Without a newline, as a process that is cut off leaves its last line.
OUT_OF_MEMORY = b"RuntimeError: [METAL] Command buffer execution failed: Insufficient Memory (00000008:x)."
VICTIM = b"[METAL] Command buffer execution failed: Discarded (victim of GPU error/recovery)\n"
NO_LIMIT = Recovery(restarts_max=10**6, breaker_deaths=10**6, fruitless_resumes_max=10**6)


def submit(stage: Stage, prompt: str = "p", tokens: int = 40, *, resume: bool = True) -> CollectingSink:
    sink = CollectingSink()
    request = make_request(sink, prompt=prompt, tokens=tokens)
    request.resume = resume
    stage.runner.submit(request)
    return sink


def result(sink: CollectingSink) -> GenerationResult:
    (outcome,) = sink.outcomes
    assert isinstance(outcome, GenerationResult), outcome
    return outcome


async def out_of_memory(stage: Stage) -> None:
    await stage.worker.complaints.send_all(OUT_OF_MEMORY)
    await trio.sleep(0.01)
    stage.worker.die(70)


@pytest.mark.parametrize("returncode", [-9, -11, -7, -6, -15, 70, 69, 0, 1])
async def test_what_ran_goes_on_in_the_next_worker_and_the_text_is_whole(
    autojump_clock: MockClock, open_stage: OpenStage, returncode: int
) -> None:
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        sinks = {prompt: submit(stage, prompt) for prompt in "abc"}
        await trio.sleep(1.05)
        before = {prompt: len(sink.pieces) for prompt, sink in sinks.items()}
        stage.worker.die(returncode)
        await trio.sleep(60)

    assert all(5 < count < 20 for count in before.values())
    for prompt, sink in sinks.items():
        assert sink.text == "".join(sink.pieces) == full_text(prompt, 40)
        assert sink.counted == ["length"]
        served_by = result(sink).worker
        assert served_by is not None
        assert (served_by.generation, served_by.resumed) == (2, 1)
        assert result(sink).usage.completion_tokens == 40
    assert len(stage.shop.workers) == 2


@example(gaps_s=[3.0] * 4, returncode=-9, tokens=[15], batch=1)
@settings(deadline=None, max_examples=60)
@given(
    gaps_s=st.lists(st.floats(0.01, 6.0), max_size=6),
    returncode=st.sampled_from([-9, -15, 75]),
    tokens=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    batch=st.integers(1, 3),
)
def test_whenever_workers_die_every_text_is_whole_and_ends_once(
    gaps_s: list[float], returncode: int, tokens: list[int], batch: int
) -> None:
    async def scenario() -> None:
        async with open_stage(recovery=NO_LIMIT, model=Model(batch_sequences_max=batch)) as stage:
            sinks = [submit(stage, str(number), count) for number, count in enumerate(tokens)]
            for gap_s in gaps_s:
                await trio.sleep(gap_s)
                if stage.shop.workers:
                    stage.worker.die(returncode)
            await until(lambda: all(sink.outcomes for sink in sinks))
            assert [sink.text for sink in sinks] == [
                full_text(str(n), count) for n, count in enumerate(tokens)
            ]
            assert [sink.counted for sink in sinks] == [["length"]] * len(tokens)
            assert stage.runner.queued == 0

    trio.run(scenario, clock=MockClock(autojump_threshold=0))


async def test_resumed_requests_go_before_those_that_waited(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    ends: list[str] = []
    async with open_stage(model=Model(batch_sequences_max=2)) as stage:
        await stage.runner.ensure_ready()
        for prompt in "abcd":
            sink = submit(stage, prompt, 20)
            sink.request_ended = lambda *_, prompt=prompt: ends.append(prompt)  # type: ignore[method-assign]
        await trio.sleep(1)
        stage.worker.die(-9)
        await trio.sleep(60)

    assert ends == ["a", "b", "c", "d"]


async def test_a_kept_worker_is_started_again_also_when_nobody_asks(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        await trio.sleep(100)
        stage.worker.die(-9)
        await trio.sleep(3)

        assert stage.runner.snapshot().state == "ready"
        assert (stage.runner.snapshot().generation, len(stage.shop.workers)) == (2, 2)
        assert stage.states[-5:] == ["stopping", "backoff", "spawning", "loading", "ready"]


async def test_nothing_is_started_again_that_was_unloaded(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        await stage.runner.unload(force=False)
        await trio.sleep(1000)

        assert stage.runner.snapshot().state == "stopped"
        assert len(stage.shop.workers) == 1


async def test_a_death_in_the_load_keeps_who_waits_waiting_and_the_next_worker_serves_them(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(Plan(load_s=100), Plan()) as stage:
        sink = submit(stage)
        await trio.sleep(3)
        stage.worker.die(-9)
        await stage.runner.ensure_ready()
        await trio.sleep(10)

    assert sink.text == full_text("p", 40)
    assert [evidence.phase for _, evidence, _ in stage.notes.deaths] == ["loading"]


async def test_a_crash_loop_restarts_by_the_formula_and_ends_in_quarantine_until_a_load_by_hand(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(recovery=Recovery(restarts_max=5)) as stage:
        stage.reactions["loading"] = lambda: stage.worker.die(-9)
        waiting = submit(stage)
        with pytest.raises(RpcError) as raised:
            await stage.runner.ensure_ready()
        await trio.sleep(10_000)

        drawn = random.Random(SEED)
        expected = [0.0, *(drawn.uniform(0.0, 2.0**n) for n in range(4))]
        waits = [
            began_s - died_s
            for died_s, began_s in zip(stage.times_s("backoff"), stage.times_s("spawning")[1:], strict=True)
        ]
        assert waits == pytest.approx(expected)
        assert len(stage.shop.workers) == 6
        assert raised.value.kind is ErrorKind.CIRCUIT_OPEN
        assert stage.runner.snapshot().state == "quarantined"
        with pytest.raises(RpcError) as refused:
            submit(stage)
        assert (refused.value.kind, refused.value.data.retriable) == (ErrorKind.CIRCUIT_OPEN, False)

        stage.reactions.clear()
        await stage.runner.load(pin=None, options=None, on_progress=lambda _: None)
        later = submit(stage)
        await trio.sleep(10)
        assert len(stage.shop.workers) == 7
    assert waiting.failure.kind is ErrorKind.CIRCUIT_OPEN
    assert waiting.failure.data.death is not None
    assert later.text == full_text("p", 40)


async def test_long_health_makes_the_next_restart_come_at_once_again(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(recovery=Recovery(restart_backoff_base_s=50)) as stage:
        for healthy_s in (0.0, 700.0, 0.0):
            await stage.runner.ensure_ready()
            await trio.sleep(healthy_s)
            stage.worker.die(-9)
            await trio.sleep(0.1)
        await trio.sleep(100)

        waits = [b - a for a, b in zip(stage.times_s("backoff"), stage.times_s("spawning")[1:], strict=True)]
        assert waits[:2] == [0.0, 0.0]
        assert waits[2] > 1.0


@pytest.mark.parametrize("returncode", [64, 69])
async def test_a_fault_of_the_configuration_never_loops_and_is_held_for_a_while(
    autojump_clock: MockClock, open_stage: OpenStage, returncode: int
) -> None:
    async with open_stage(Plan(load_s=4), recovery=Recovery(failed_hold_s=5.0)) as stage:
        waiting = submit(stage)
        await trio.sleep(2)
        await stage.worker.complaints.send_all(b"ModuleNotFoundError: No module named 'mlx_lm'\n")
        await trio.sleep(0.01)
        stage.worker.die(returncode)
        await stage.wait_state("failed")
        await trio.sleep(4.9)
        with pytest.raises(RpcError) as refused:
            submit(stage)
        assert refused.value.kind is ErrorKind.MODEL_LOAD_FAILED
        await trio.sleep(1000)
        assert len(stage.shop.workers) == 1

        later = submit(stage)
        await trio.sleep(20)
    assert waiting.failure.kind is ErrorKind.MODEL_LOAD_FAILED
    assert "import_error" in waiting.failure.message if returncode == 69 else "bad_configuration"
    assert later.text == full_text("p", 40)


async def test_out_of_memory_fails_what_was_alone_and_serves_what_comes_next(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(model=Model(batch_sequences_max=1)) as stage:
        await stage.runner.ensure_ready()
        running, waiting = submit(stage), submit(stage, tokens=3)
        await trio.sleep(1.05)
        await out_of_memory(stage)
        await trio.sleep(30)

    assert running.failure.kind is ErrorKind.WORKER_DIED
    assert running.failure.data.tokens_delivered == len(running.pieces) > 5
    assert running.failure.data.death is not None
    assert running.failure.data.death.death_class == "gpu_out_of_memory"
    assert waiting.text == full_text("p", 3)


async def test_what_ran_out_of_memory_together_goes_on_one_after_the_other(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    most = 0
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        sinks = [submit(stage, prompt) for prompt in "abc"]
        await trio.sleep(1.05)
        await out_of_memory(stage)
        await stage.wait_entered("ready", 2)
        while not all(sink.outcomes for sink in sinks):
            most = max(most, len(stage.worker._sequences))
            await trio.sleep(0.05)

    assert [sink.text for sink in sinks] == [full_text(prompt, 40) for prompt in "abc"]
    assert most == 1


async def test_who_does_not_want_to_be_resumed_is_told_of_the_death(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        plain, resumed = submit(stage, resume=False), submit(stage)
        await trio.sleep(1.05)
        stage.worker.die(-9)
        await trio.sleep(0.1)
        assert plain.failure.kind is ErrorKind.WORKER_DIED
        assert plain.failure.data.retriable
        assert plain.failure.data.death is not None
        assert plain.failure.data.death.signal == "SIGKILL"
        assert plain.failure.data.tokens_delivered == len(plain.pieces) > 5
        await trio.sleep(30)

    assert resumed.text == full_text("p", 40)


async def test_who_asks_while_a_worker_is_failing_waits_for_the_next(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(Plan(closes_output_s=5.0), Plan()) as stage:
        await stage.runner.ensure_ready()
        await trio.sleep(3.0)
        # It lives on for two seconds, in which nobody could hear its answers.
        sink = submit(stage, resume=False)
        await trio.sleep(60)

    assert sink.text == full_text("p", 40)
    assert stage.classes == ["protocol_broken"]
    assert [aftermath.failed for _, _, aftermath in stage.notes.deaths] == [[]]


async def test_an_unload_does_not_take_the_requests_of_a_worker_that_was_failing_before(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(Plan(closes_output_s=5.0), Plan()) as stage:
        await stage.runner.ensure_ready()
        sink = submit(stage)
        await trio.sleep(3.0)
        await stage.runner.unload(force=False)
        await trio.sleep(60)

    assert sink.text == full_text("p", 40)


async def kill_who_computes(stage: Stage, prompt: str, returncode: int = -11) -> None:
    """The request with this prompt ends every worker that computes it."""
    while True:
        await trio.sleep(0.05)
        for worker in stage.shop.workers:
            if any(order.prompt == prompt for order in worker._sequences.values()):
                worker.die(returncode)


async def test_what_kills_without_a_word_fails_alone_and_its_neighbours_complete(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(recovery=Recovery(breaker_deaths=10)) as stage, trio.open_nursery() as nursery:
        nursery.start_soon(kill_who_computes, stage, "poison", -9)
        poison = submit(stage, "poison")
        neighbours = {prompt: submit(stage, prompt) for prompt in "abcdefg"}
        await trio.sleep(300)
        nursery.cancel_scope.cancel()

    assert poison.failure.kind is ErrorKind.WORKER_DIED
    assert {prompt: sink.text for prompt, sink in neighbours.items()} == {
        prompt: full_text(prompt, 40) for prompt in "abcdefg"
    }
    assert stage.classes == ["killed"] * 4


async def test_a_suspect_is_computed_though_more_urgent_requests_keep_coming(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async def keep_asking() -> None:
        while True:
            sink = CollectingSink()
            stage.runner.submit(make_request(sink, tokens=30, priority=Priority.INTERACTIVE))
            await trio.sleep(0.5)

    async with open_stage() as stage, trio.open_nursery() as nursery:
        await stage.runner.ensure_ready()
        suspects = [submit(stage, prompt, 20) for prompt in "ab"]
        nursery.start_soon(keep_asking)
        await trio.sleep(1.05)
        stage.worker.die(-11)
        await trio.sleep(20)
        assert [sink.text for sink in suspects] == [full_text(prompt, 20) for prompt in "ab"]
        nursery.cancel_scope.cancel()


async def test_a_poisonous_request_is_quarantined_at_its_second_death_and_its_neighbours_complete(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(recovery=Recovery(breaker_deaths=10)) as stage, trio.open_nursery() as nursery:
        await stage.runner.ensure_ready()
        neighbours = {prompt: submit(stage, prompt) for prompt in "abc"}
        await trio.sleep(1)
        nursery.start_soon(kill_who_computes, stage, "poison")
        poison = submit(stage, "poison")
        neighbours |= {prompt: submit(stage, prompt) for prompt in "de"}
        await trio.sleep(200)

        with pytest.raises(RpcError) as refused:
            submit(stage, "poison")
        nursery.cancel_scope.cancel()

    assert stage.classes == ["segmentation_fault"] * 2
    assert poison.failure.kind is ErrorKind.QUARANTINED
    assert refused.value.kind is ErrorKind.QUARANTINED
    assert {prompt: sink.text for prompt, sink in neighbours.items()} == {
        prompt: full_text(prompt, 40) for prompt in "abcde"
    }
    assert [entry.deaths for entry in stage.notes.quarantined] == [2]
    assert len(stage.shop.workers) == 3


async def test_poison_that_was_sent_many_times_ends_no_more_workers_than_if_it_was_sent_once(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    recovery, model = Recovery(breaker_deaths=10), Model(batch_sequences_max=2)
    async with open_stage(recovery=recovery, model=model) as stage, trio.open_nursery() as nursery:
        await stage.runner.ensure_ready()
        nursery.start_soon(kill_who_computes, stage, "poison")
        poisons = [submit(stage, "poison") for _ in range(5)]
        neighbour = submit(stage, "a")
        await trio.sleep(200)
        nursery.cancel_scope.cancel()

    assert stage.classes == ["segmentation_fault"] * 2
    assert {poison.failure.kind for poison in poisons} == {ErrorKind.QUARANTINED}
    assert neighbour.text == full_text("a", 40)


async def test_suspects_are_computed_alone_until_they_are_cleared(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    most: list[int] = []
    async with open_stage(recovery=Recovery(suspect_tokens=8)) as stage:
        await stage.runner.ensure_ready()
        sinks = [submit(stage, prompt) for prompt in "ab"]
        await trio.sleep(1.05)
        stage.worker.die(-11)
        await trio.sleep(0.1)
        await stage.wait_state("ready")
        while not all(sink.outcomes for sink in sinks):
            await trio.sleep(0.1)
            most.append(len(stage.worker._sequences))

    assert [sink.text for sink in sinks] == [full_text(prompt, 40) for prompt in "ab"]
    # First each alone for its eight tokens, then both.
    assert max(most[:14]) == 1
    assert most.count(2) > 10


async def test_garbage_from_a_worker_ends_it_and_what_it_had_goes_on(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(Plan(garbage_s=4), Plan()) as stage:
        sink = submit(stage, tokens=100)
        await trio.sleep(30)

    assert stage.classes == ["protocol_broken"]
    assert "broke the worker protocol" in stage.notes.deaths[0][2].reason
    assert sink.text == full_text("p", 100)


async def test_what_breaks_the_protocol_is_quoted_nowhere(
    autojump_clock: MockClock, open_stage: OpenStage, caplog: pytest.LogCaptureFixture
) -> None:
    answer = b'{"jsonrpc":"2.0","id":%d,"result":{"xylophone":1}}'
    step = b'{"jsonrpc":"2.0","method":"step","params":{"xylophone":1}}'
    no_such = b'{"jsonrpc":"2.0","method":"xylophone"}'
    async with open_stage(Plan(load_answer=answer), Plan()) as stage:
        sink = submit(stage, tokens=100)
        for deaths, frame in ((2, step), (3, no_such)):
            await stage.wait_entered("ready", deaths - 1)
            await stage.worker._say(frame)
            await until(lambda deaths=deaths: len(stage.notes.deaths) == deaths)  # type: ignore[misc]
        await until(lambda: bool(sink.outcomes))

    said = caplog.text + "".join(aftermath.reason for _, _, aftermath in stage.notes.deaths)
    assert stage.classes == ["protocol_broken"] * 3
    assert "ValidationError" in said
    assert "an unknown method" in said
    assert "xylophone" not in said


@pytest.mark.parametrize(("silence_s", "seen"), [(9.0, "gpu_out_of_memory"), (11.0, "aborted")])
async def test_what_a_worker_wrote_long_before_its_death_does_not_explain_it(
    open_stage: OpenStage, silence_s: float, seen: str, autojump_clock: MockClock
) -> None:
    async with open_stage() as stage:
        await stage.runner.ensure_ready()
        await stage.worker.complaints.send_all(OUT_OF_MEMORY)
        await trio.sleep(silence_s)
        stage.worker.die(-6)
        await stage.wait_entered("backoff")

        assert stage.classes == [seen]
        assert stage.notes.deaths[0][1].stderr == (OUT_OF_MEMORY.decode(),)


async def test_faults_of_other_programs_refuse_for_a_while_though_requests_complete_between_them(
    open_stage: OpenStage, autojump_clock: MockClock
) -> None:
    async with open_stage(recovery=Recovery(machine_deaths=3, machine_window_s=600.0)) as stage:
        for deaths in range(3):
            await stage.runner.ensure_ready()
            for _ in range(10):
                sink = CollectingSink()
                stage.runner.submit(make_request(sink))
                await until(lambda sink=sink: bool(sink.outcomes))  # type: ignore[misc]
            await stage.worker.complaints.send_all(VICTIM)
            stage.worker.die(-6)
            await stage.wait_entered("backoff", deaths + 1)
        with pytest.raises(RpcError, match="machine") as refused:
            stage.runner.submit(make_request(CollectingSink()))

        assert refused.value.kind is ErrorKind.CIRCUIT_OPEN
        assert stage.classes == ["gpu_victim"] * 3


async def test_a_long_answer_as_the_first_after_an_open_breaker_keeps_nobody_waiting(
    open_stage: OpenStage, autojump_clock: MockClock
) -> None:
    recovery = Recovery(breaker_deaths=3, breaker_open_s=10.0, restart_backoff_base_s=0.01)
    async with open_stage(recovery=recovery) as stage:
        await stage.runner.ensure_ready()
        for deaths in range(3):
            stage.worker.die(-9)
            await stage.wait_entered("ready", deaths + 2)
        await trio.sleep(15.0)
        probe = CollectingSink()
        stage.runner.submit(make_request(probe, tokens=6000))
        await until(lambda: len(probe.pieces) >= recovery.suspect_tokens)
        for _ in range(5):
            stage.runner.submit(make_request(CollectingSink(), tokens=20))
            await trio.sleep(1.0)

        assert stage.runner.snapshot().breaker == "closed"
        assert not probe.outcomes


async def test_deaths_in_a_row_open_the_breaker_and_what_was_accepted_goes_on(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    recovery = Recovery(breaker_deaths=3, breaker_open_s=20.0, restarts_max=100)
    async with open_stage(recovery=recovery) as stage:
        await stage.runner.ensure_ready()
        accepted = submit(stage, tokens=100)
        for _ in range(3):
            await stage.wait_state("ready")
            await trio.sleep(0.5)
            stage.worker.die(-9)
            await trio.sleep(0.01)
        with pytest.raises(RpcError) as refused:
            submit(stage)
        assert refused.value.kind is ErrorKind.CIRCUIT_OPEN
        assert 0 < (refused.value.data.retry_after_ms or 0) <= 20_000
        await trio.sleep(20)
        probe = submit(stage)
        with pytest.raises(RpcError):
            submit(stage)
        await trio.sleep(30)
        second = submit(stage)
        await trio.sleep(10)
        assert stage.runner.snapshot().breaker == "closed"

    assert accepted.text == full_text("p", 100)
    assert probe.text == second.text == full_text("p", 40)


async def test_memory_that_did_not_come_back_refuses_the_next_worker_with_the_numbers(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    gb = 10**9
    async with open_stage(recovery=Recovery(headroom_bytes=gb)) as stage:
        stage.memory.update(resident=20 * gb, available=4 * gb)
        await stage.runner.ensure_ready()
        sink = submit(stage, tokens=100)
        await trio.sleep(3.05)
        stage.memory["available"] = 5 * gb
        stage.worker.die(-9)
        await trio.sleep(9)
        assert (stage.runner.snapshot().state, sink.outcomes) == ("backoff", [])
        await trio.sleep(2)

        assert sink.failure.kind is ErrorKind.MODEL_LOAD_FAILED
        assert sink.failure.data.retriable
        assert all(number in sink.failure.message for number in ("19000 MB", "5000 MB", "21000 MB"))
        await trio.sleep(1000)
        assert (stage.runner.snapshot().state, len(stage.shop.workers)) == ("failed", 1)
        with pytest.raises(RpcError, match="19000 MB"):
            await stage.runner.ensure_ready()
        stage.memory["available"] = 24 * gb
        await trio.sleep(10)
        later = submit(stage)
        await trio.sleep(10)
    assert later.text == full_text("p", 40)


async def test_memory_that_comes_back_a_moment_late_costs_nobody_a_stream(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    gb = 10**9
    async with open_stage(recovery=Recovery(headroom_bytes=gb)) as stage:
        stage.memory.update(resident=20 * gb, available=4 * gb)
        await stage.runner.ensure_ready()
        sinks = [submit(stage, prompt, tokens=100) for prompt in "abcdefgh"]
        await trio.sleep(3.05)
        stage.memory["available"] = 5 * gb
        stage.worker.die(-9)
        await trio.sleep(5)
        stage.memory["available"] = 24 * gb
        await trio.sleep(20)

    assert [sink.text for sink in sinks] == [full_text(prompt, 100) for prompt in "abcdefgh"]


async def test_what_others_took_since_an_orderly_end_is_no_memory_left_behind(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    gb = 10**9
    async with open_stage(recovery=Recovery(headroom_bytes=gb)) as stage:
        stage.memory.update(resident=20 * gb, available=4 * gb)
        await stage.runner.ensure_ready()
        await trio.sleep(3)
        await stage.runner.unload(force=False)
        await trio.sleep(1)

        await stage.runner.ensure_ready()
    assert len(stage.shop.workers) == 2


async def test_whoever_loads_by_hand_has_read_the_numbers_and_gets_a_worker(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    gb = 10**9
    async with open_stage(recovery=Recovery(headroom_bytes=gb, restarts_max=0)) as stage:
        stage.memory.update(resident=20 * gb, available=4 * gb)
        await stage.runner.ensure_ready()
        await trio.sleep(3)
        stage.worker.die(-9)
        await stage.wait_state("quarantined")

        await stage.runner.load(pin=None, options=None, on_progress=lambda _: None)
        assert stage.runner.snapshot().state == "ready"


async def test_a_load_that_keeps_failing_is_tried_more_and_more_seldom_until_somebody_loads_by_hand(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    refusal = RpcError(ErrorKind.MODEL_LOAD_FAILED, "bad weights")
    recovery = Recovery(failed_hold_s=5.0, failed_hold_max_s=300.0, breaker_deaths=1000)
    async with open_stage(Plan(load_error=refusal), recovery=recovery) as stage:
        for _ in range(600):
            with suppress(RpcError):
                submit(stage)
            await trio.sleep(1)
        # After 5, 10, 20, 40, 80, 160 and 300 s, and the time of the loads.
        assert len(stage.shop.workers) == 7
        for workers in (8, 9):
            with pytest.raises(RpcError, match="bad weights"):
                await stage.runner.load(pin=None, options=None, on_progress=lambda _: None)
            assert len(stage.shop.workers) == workers


async def test_a_question_starts_no_worker_past_an_open_breaker(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage() as stage:
        stage.runner.gate.breaker.force_open()
        with pytest.raises(RpcError) as refused:
            await stage.runner.call("tokenize", {"text": "x"}, dict)

        assert refused.value.kind is ErrorKind.CIRCUIT_OPEN
        assert stage.shop.workers == []


async def test_a_question_is_asked_again_when_its_worker_dies(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    from mlxsup.protocol import worker_link as link

    answers: list[object] = []
    async with open_stage() as stage, trio.open_nursery() as nursery:
        await stage.runner.ensure_ready()

        async def ask() -> None:
            answers.append(await stage.runner.call(link.TOKENIZE, link.Tokenize(text="x"), link.Tokenized))

        nursery.start_soon(ask)
        await trio.sleep(1)
        stage.worker.die(-9)
        await trio.sleep(10)
        # The worker in memory answers no such question: it is asked a second time, and waits.
        assert answers == []
        assert len(stage.shop.workers) == 2
        life = await stage.runner.ensure_ready()
        assert life.worker is not None
        (id,) = life.worker._calls
        await stage.worker._say(link_result(id, link.Tokenized(tokens=[1, 2])))
        await trio.sleep(1)

    assert answers == [link.Tokenized(tokens=[1, 2])]


async def test_an_answer_of_the_wrong_form_ends_the_worker_and_the_question_goes_to_the_next(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    from mlxsup.protocol import worker_link as link

    async with open_stage() as stage, trio.open_nursery() as nursery:
        await stage.runner.ensure_ready()
        nursery.start_soon(stage.runner.call, link.TOKENIZE, link.Tokenize(text="x"), link.Tokenized)
        await trio.sleep(1)
        life = await stage.runner.ensure_ready()
        assert life.worker is not None
        (id,) = life.worker._calls
        await stage.worker._say(link_result(id, link.Detokenized(text="no")))
        await trio.sleep(10)

        assert stage.classes == ["protocol_broken"]
        assert stage.runner.snapshot().state == "ready"
        life = await stage.runner.ensure_ready()
        assert life.worker is not None
        assert len(life.worker._calls) == 1
        nursery.cancel_scope.cancel()


def link_result(id: int, value: object) -> bytes:
    from mlxsup.protocol.jsonrpc import encode_result

    return encode_result(id, value)


async def test_a_load_that_forgives_nothing_leaves_a_quarantined_model_alone(
    autojump_clock: MockClock, open_stage: OpenStage
) -> None:
    async with open_stage(recovery=Recovery(restarts_max=0)) as stage:
        await stage.runner.ensure_ready()
        stage.worker.die(-9)
        await stage.wait_state("quarantined")

        with pytest.raises(RpcError, match="quarantined"):
            await stage.runner.load(pin=None, options=None, on_progress=lambda _: None, forgive=False)
        assert (stage.runner.snapshot().state, len(stage.shop.workers)) == ("quarantined", 1)
