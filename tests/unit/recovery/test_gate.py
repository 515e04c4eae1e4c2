"""Who may come in, who is told why not, and what their ends say about the worker."""

import pytest

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.recovery.breaker import BreakerLimits, BreakerState, CircuitBreaker
from mlxsup.supervisor.recovery.gate import Gate
from mlxsup.supervisor.recovery.poison import PoisonWatch, QuarantinedRequest, request_digest
from tests.fakes.collecting_sink import CollectingSink
from tests.fakes.requests import make_request

LIMITS = BreakerLimits(consecutive_max=3)
MACHINE_LIMITS = BreakerLimits(window_s=600.0, faults_max=3)
PROBE_TOKENS = 8
DIED = RpcError(ErrorKind.WORKER_DIED, "x")


class Scene:
    def __init__(self) -> None:
        self.machine = CircuitBreaker(MACHINE_LIMITS)
        self.poison = PoisonWatch(8, 100, 3600.0)
        self.gate = Gate(CircuitBreaker(LIMITS), self.machine, self.poison, PROBE_TOKENS)
        self.other = Gate(CircuitBreaker(LIMITS), self.machine, self.poison, PROBE_TOKENS)

    def enter(self, now_s: float = 0.0, gate: Gate | None = None) -> GenerationRequest:
        gate = gate or self.gate
        request = make_request(CollectingSink(), now_s=now_s)
        gate.enter(request, now_s)
        return request

    def die(self, times: int = 1, *, machine: bool = False, counts: bool = True) -> None:
        for _ in range(times):
            self.gate.worker_died(counts=counts, machine=machine, now_s=0.0)


def refusal(scene: Scene, now_s: float = 0.0, gate: Gate | None = None) -> RpcError:
    with pytest.raises(RpcError) as raised:
        scene.enter(now_s, gate)
    return raised.value


def test_deaths_in_a_row_refuse_new_requests_with_the_time_to_come_back() -> None:
    scene = Scene()
    scene.die(2)
    scene.enter()
    scene.die()

    error = refusal(scene, 4.0)
    assert error.kind is ErrorKind.CIRCUIT_OPEN
    assert (error.data.retriable, error.data.retry_after_ms) == (True, 6000)
    scene.enter(10.0)


def test_a_request_that_completes_between_deaths_begins_the_row_anew() -> None:
    scene = Scene()
    scene.enter()
    for _ in range(4):
        request = scene.enter()
        scene.gate.left(request, None, 0.0)
    scene.die(2)
    scene.gate.left(scene.enter(), None, 0.0)
    scene.die(2)
    scene.enter()
    assert scene.gate.breaker_state(0.0) is BreakerState.CLOSED


def test_a_death_counts_once_however_many_requests_end_with_it() -> None:
    scene = Scene()
    requests = [scene.enter() for _ in range(10)]
    scene.die()
    for request in requests:
        scene.gate.left(request, DIED, 0.0)

    assert scene.gate.breaker_state(0.0) is BreakerState.CLOSED
    scene.die(2)
    assert scene.gate.breaker_state(0.0) is BreakerState.OPEN


def test_a_cancel_and_a_clients_own_mistake_say_nothing_of_the_worker() -> None:
    scene = Scene()
    cancelled, mistaken = scene.enter(), scene.enter()
    cancelled.cancel_asked = True
    scene.die(2)
    scene.gate.left(cancelled, None, 0.0)
    scene.gate.left(mistaken, RpcError(ErrorKind.INVALID_PARAMS, "x"), 0.0)
    scene.die()

    assert scene.gate.breaker_state(0.0) is BreakerState.OPEN


def test_half_open_one_probe_is_let_through_until_it_has_ended() -> None:
    scene = Scene()
    scene.die(3)
    probe = scene.enter(10.0)
    assert refusal(scene, 10.0).kind is ErrorKind.CIRCUIT_OPEN
    scene.gate.left(probe, None, 11.0)
    probe = scene.enter(11.0)
    scene.gate.left(probe, None, 12.0)

    assert scene.gate.breaker_state(12.0) is BreakerState.CLOSED


def test_half_open_a_probe_has_gone_well_with_its_first_tokens_and_counts_once() -> None:
    scene = Scene()
    scene.die(3, machine=True)
    probe = scene.enter(10.0)
    probe.deliver("", [1] * (PROBE_TOKENS - 1), 10.0)
    scene.gate.note_step(10.0)
    assert refusal(scene, 10.0).kind is ErrorKind.CIRCUIT_OPEN
    probe.deliver("", [1], 10.0)
    scene.gate.note_step(10.0)
    second = scene.enter(10.0)
    scene.gate.left(probe, None, 11.0)
    assert scene.gate.breaker_state(11.0) is BreakerState.HALF_OPEN
    second.deliver("", [1] * PROBE_TOKENS, 11.0)
    scene.gate.note_step(11.0)

    assert scene.gate.breaker_state(11.0) is BreakerState.CLOSED
    assert scene.machine.state(11.0) is BreakerState.CLOSED


def test_a_probe_that_is_refused_for_another_reason_lets_the_next_try() -> None:
    scene = Scene()
    scene.die(3, machine=True)
    turned_away = scene.enter(10.0)
    scene.gate.left(turned_away, RpcError(ErrorKind.OVERLOADED, "x"), 10.0)

    scene.enter(10.0)


def test_a_probe_of_the_machine_that_the_model_refuses_lets_another_model_try() -> None:
    scene = Scene()
    scene.die(3, machine=True)
    scene.gate.breaker.force_open()

    assert "by hand" in refusal(scene, 10.0).message
    scene.enter(10.0, scene.other)


def test_faults_beyond_one_worker_refuse_all_models() -> None:
    scene = Scene()
    scene.die(3, machine=True, counts=False)

    assert "machine" in refusal(scene, 0.0, scene.other).message
    assert scene.gate.breaker_state(0.0) is BreakerState.CLOSED


def test_faults_of_the_machine_add_up_over_the_models_and_across_what_completes() -> None:
    scene = Scene()
    for gate in (scene.gate, scene.other, scene.gate):
        for _ in range(20):
            gate.left(scene.enter(gate=gate), None, 0.0)
        gate.worker_died(counts=False, machine=True, now_s=0.0)

    for gate in (scene.gate, scene.other):
        assert "machine" in refusal(scene, 0.0, gate).message


def test_deaths_of_one_model_concern_no_other() -> None:
    scene = Scene()
    scene.die(10)

    scene.enter(0.0, scene.other)


def test_forced_open_by_hand_it_names_no_time_and_is_not_retriable() -> None:
    scene = Scene()
    scene.gate.breaker.force_open()

    error = refusal(scene)
    assert (error.kind, error.data.retriable, error.data.retry_after_ms) == (
        ErrorKind.CIRCUIT_OPEN,
        False,
        None,
    )
    scene.gate.open()
    assert refusal(scene).kind is ErrorKind.CIRCUIT_OPEN


def test_shut_it_refuses_with_the_reason_until_its_time_or_until_it_is_opened() -> None:
    scene = Scene()
    why = RpcError(ErrorKind.MODEL_LOAD_FAILED, "no")
    scene.gate.shut(why, 5.0)
    assert refusal(scene, 4.9) is why
    scene.enter(5.0)
    scene.gate.shut(why, 500.0)
    scene.gate.open()
    scene.enter(6.0)


def test_opened_by_hand_what_the_breaker_counted_is_forgiven() -> None:
    scene = Scene()
    scene.die(3)
    scene.gate.open()

    scene.enter()


def test_a_quarantined_request_is_refused_and_its_neighbours_are_not() -> None:
    scene = Scene()
    poisonous = make_request(CollectingSink(), prompt="a secret", now_s=0.0)
    scene.poison.quarantine(
        QuarantinedRequest(
            digest=request_digest("m", poisonous.order), model="m", deaths=2, death_class="aborted"
        )
    )
    with pytest.raises(RpcError) as raised:
        scene.gate.enter(poisonous, 0.0)

    assert raised.value.kind is ErrorKind.QUARANTINED
    assert not raised.value.data.retriable
    assert "secret" not in raised.value.message
    scene.enter()


def test_a_machine_that_is_held_refuses_for_every_model_until_its_time_is_up() -> None:
    scene = Scene()
    scene.machine.open_for(3600.0, now_s=0.0)

    for gate in (scene.gate, scene.other):
        held = refusal(scene, now_s=600.0, gate=gate)
        assert (held.kind, held.data.retry_after_ms) == (ErrorKind.CIRCUIT_OPEN, 3_000_000)
    scene.enter(3600.0)


def test_a_load_by_hand_ends_the_hold_on_the_machine() -> None:
    scene = Scene()
    scene.machine.open_for(3600.0, now_s=0.0)

    scene.gate.open()

    scene.enter(1.0)
