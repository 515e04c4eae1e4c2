"""What follows a death: each request has one of three fates, and the next worker its moment or none."""

import signal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.protocol.errors import ErrorKind
from mlxsup.protocol.exit_codes import ExitCode
from mlxsup.supervisor.generation.request import GenerationRequest
from mlxsup.supervisor.recovery.aftermath import Aftermath, decide_aftermath
from mlxsup.supervisor.recovery.classify import Evidence
from mlxsup.supervisor.recovery.poison import PoisonWatch
from mlxsup.supervisor.recovery.restart_policy import RestartLimits, RestartPolicy
from mlxsup.supervisor.recovery.signal_origin import Origin
from tests.fakes.collecting_sink import CollectingSink
from tests.fakes.requests import make_request

OUT_OF_MEMORY = "[METAL] Command buffer execution failed: Insufficient Memory"
PENALTY_BOX = "Ignored (for causing prior/excessive GPU errors)"


def make(*resume: bool) -> list[GenerationRequest]:
    requests = []
    for number, resumes in enumerate(resume):
        request = make_request(CollectingSink(), prompt=str(number), now_s=0.0)
        request.resume = resumes
        requests.append(request)
    return requests


class Scene:
    def __init__(self, restarts_max: int = 5) -> None:
        self.poison = PoisonWatch(8, 10, 3600.0)
        limits = RestartLimits(
            backoff_base_s=1.0, backoff_max_s=60.0, healthy_s=600.0, restarts_max=restarts_max, window_s=300.0
        )
        self.policy = RestartPolicy(limits, lambda _, high: high)

    def die(
        self,
        lost: list[GenerationRequest],
        returncode: int = -11,
        *stderr: str,
        another: bool = False,
        why: str | None = None,
        questions: int = 0,
        **seen: Any,
    ) -> Aftermath:
        return decide_aftermath(
            Evidence(returncode=returncode, stderr=stderr, phase="ready", **seen),
            why,
            lost,
            questions=questions,
            poison=self.poison,
            policy=self.policy,
            another=another,
            fruitless_resumes_max=3,
            ready_s=0.0,
            now_s=0.0,
        )


def test_what_ran_goes_on_but_for_who_does_not_want_to() -> None:
    a, b, c = make(True, False, True)
    aftermath = Scene().die([a, b, c], -9)

    assert (aftermath.resumed, aftermath.failed, aftermath.quarantined) == ([a, c], [b], [])
    assert aftermath.wait_s == 0.0
    assert aftermath.action == "2 resumed, 1 failed, restart after 0.0 s"


def test_what_was_too_much_together_is_computed_one_by_one_and_what_is_too_much_alone_fails() -> None:
    fits, does_not = make(True, True)
    scene = Scene()
    together = scene.die([fits, does_not], ExitCode.GPU_ERROR, OUT_OF_MEMORY)
    assert (together.resumed, together.failed, together.batch_max) == ([fits, does_not], [], 1)
    assert "at most 1 at once for a while" in together.action
    assert scene.poison.is_loner(does_not)
    assert scene.poison.is_loner(fits)

    fits.note_resume()
    fits.deliver("x" * 8, [1] * 8, 0.0)
    does_not.note_resume()
    assert not scene.poison.is_loner(fits)
    alone = scene.die([does_not], ExitCode.GPU_ERROR, OUT_OF_MEMORY)

    assert (alone.resumed, alone.failed, alone.batch_max) == ([], [does_not], None)
    assert alone.wait_s is not None
    assert alone.error.kind is ErrorKind.WORKER_DIED
    assert alone.error.data.death is not None
    assert alone.error.data.death.death_class == "gpu_out_of_memory"


@pytest.mark.parametrize("resume", [True, False])
def test_what_is_too_much_alone_costs_the_model_nothing_however_often_it_is_sent(resume: bool) -> None:
    scene = Scene(restarts_max=1)
    for _ in range(20):
        (request,) = make(resume)
        aftermath = scene.die([request], ExitCode.GPU_ERROR, OUT_OF_MEMORY)

        assert (aftermath.failed, aftermath.weight, aftermath.wait_s) == ([request], 0, 0.0)


def test_what_kills_without_a_word_costs_the_model_no_more_when_it_is_sent_again() -> None:
    scene = Scene(restarts_max=23)
    (request,) = make(True)
    for _ in range(3):
        assert scene.die([request], -9).resumed == [request]
        request.note_resume()
    assert scene.die([request], -9).failed == [request]
    for _ in range(20):
        again = make_request(CollectingSink(), prompt="x", tokens=10, now_s=0.0)
        again.order = request.order
        scene.poison.note_start(again, 0.0)

        assert scene.poison.is_loner(again)
        # Other deaths have nothing to do with that.
        assert scene.die([again], -15).resumed == [again]
        assert scene.die([again], -9).failed == [again]


@pytest.mark.parametrize(("another", "resumed"), [(False, 0), (True, 2)])
def test_without_another_worker_nothing_can_go_on(another: bool, resumed: int) -> None:
    lost = make(True, True)
    by_budget = Scene(restarts_max=0).die(lost, -9, another=another)
    by_class = Scene().die(lost, ExitCode.DEFECT, "ImportError: x", another=another)

    assert by_budget.wait_s is by_class.wait_s is None
    assert (by_budget.given_up, by_class.given_up) == ((None, None) if another else ("quarantined", "failed"))
    assert len(by_budget.resumed) == len(by_class.resumed) == resumed
    assert len(by_budget.failed) == len(by_class.failed) == 2 - resumed
    assert by_budget.action.endswith("another worker is there" if another else "no restart")


def test_a_class_that_asks_for_a_restart_at_once_gets_it_within_the_budget() -> None:
    scene = Scene()
    waits = [scene.die([], ExitCode.GPU_ERROR, PENALTY_BOX).wait_s for _ in range(7)]

    assert waits == [0.0] * 5 + [None] * 2


def test_a_crash_alone_twice_is_quarantined_and_a_kill_from_outside_never() -> None:
    killed, crashed = make(True, True)
    scene = Scene()
    for _ in range(3):
        assert scene.die([killed], -9).resumed == [killed]
    assert scene.die([crashed]).resumed == [crashed]
    assert scene.die([crashed]).quarantined == [crashed]
    assert scene.poison.find("m", crashed.order) is not None


def test_a_crash_that_somebody_sends_is_never_quarantined_and_one_of_its_own_is() -> None:
    (request,) = make(True)
    scene = Scene()
    for _ in range(4):
        sent = scene.die([request], origin=Origin(number=signal.SIGSEGV, sender_pid=1))
        assert (sent.resumed, sent.quarantined) == ([request], [])
    assert scene.die([request], origin=Origin(number=signal.SIGSEGV)).resumed == [request]
    assert scene.die([request], origin=Origin(number=signal.SIGSEGV)).quarantined == [request]


def test_what_the_kernel_killed_for_memory_lets_each_request_go_on_once_and_then_alone() -> None:
    fresh, resumed, unwilling = make(True, True, False)
    resumed.note_resume()
    scene = Scene()
    aftermath = scene.die([fresh, resumed, unwilling], -9, killed_for_memory=True)

    assert (aftermath.resumed, aftermath.failed) == ([fresh, resumed], [unwilling])
    assert not scene.poison.is_loner(fresh)
    assert scene.poison.is_loner(resumed)
    assert scene.die([resumed], -9, killed_for_memory=True).failed == [resumed]


def test_a_death_that_a_request_is_found_guilty_of_costs_the_model_nothing() -> None:
    variants = make(*[True] * 6)
    scene = Scene(restarts_max=1)
    assert scene.die(variants).weight == 1
    for variant in variants:
        alone = scene.die([variant])

        assert (alone.quarantined, alone.weight, alone.wait_s) == ([variant], 0, 0.0)


def test_nobody_is_found_guilty_of_what_a_question_beside_it_may_have_done() -> None:
    (request,) = make(True)
    scene = Scene()
    scene.die([request])

    assert scene.die([request], questions=1).resumed == [request]
    assert scene.die([request]).quarantined == [request]


def test_nobody_fails_for_what_a_question_beside_it_may_have_done() -> None:
    (request,) = make(True)
    aftermath = Scene().die([request], -6, "[malloc] Unable to allocate 1 bytes.", questions=1)

    assert (aftermath.resumed, aftermath.failed) == ([request], [])


def test_who_was_isolated_for_another_reason_is_not_found_guilty_at_its_first_crash() -> None:
    request, other = make(True, True)
    scene = Scene(restarts_max=100)
    scene.die([request, other], ExitCode.GPU_ERROR, OUT_OF_MEMORY)

    assert scene.poison.is_loner(request)
    assert scene.die([request]).quarantined == []


def test_what_kills_without_a_word_is_computed_alone_before_anybody_fails() -> None:
    lost = make(True, True, True)
    scene = Scene(restarts_max=100)
    for _ in range(3):
        assert scene.die(lost, -9).resumed == lost
        for request in lost:
            request.note_resume()
    guilty, *others = lost

    assert all(scene.poison.is_loner(request) for request in lost)
    assert scene.die([guilty], -9).failed == [guilty]
    for request in others:
        request.deliver("x", [1] * 8, 0.0)
        assert not scene.poison.is_loner(request)


@given(
    st.lists(st.booleans(), max_size=6),
    st.sampled_from([-9, -11, -6, 0, 64, 69, 70, 75, 1]),
    st.sampled_from(["", OUT_OF_MEMORY, PENALTY_BOX, "ImportError: x"]),
    st.booleans(),
    st.integers(0, 2),
)
def test_each_lost_request_has_exactly_one_fate(
    resume: list[bool], returncode: int, text: str, another: bool, restarts_max: int
) -> None:
    lost = make(*resume)
    scene = Scene(restarts_max)
    for _ in range(3):
        aftermath = scene.die(lost, returncode, text, another=another)
        fates = [*aftermath.resumed, *aftermath.failed, *aftermath.quarantined]

        assert sorted(request.id for request in fates) == sorted(request.id for request in lost)
        lost = aftermath.resumed


def test_the_facts_of_the_end_are_told() -> None:
    killed = Scene().die([], -signal.SIGKILL)
    left = Scene().die([], ExitCode.DEFECT, why="it broke down")

    assert (killed.death.signal, killed.death.exit_status, killed.death.phase) == ("SIGKILL", None, "ready")
    assert (left.death.signal, left.death.exit_status) == (None, 69)
    assert "SIGKILL" in killed.error.message
    assert "exit status 69" in left.reason
    assert "it broke down" in left.reason
    assert left.verdict.advice in left.reason


def test_who_sent_the_signal_is_told_with_it() -> None:
    scene = Scene(restarts_max=100)
    crashed = scene.die([], origin=Origin(number=signal.SIGSEGV))
    sent = scene.die([], origin=Origin(number=signal.SIGSEGV, sender_pid=12, sender_name="zsh"))
    asked = scene.die([], ExitCode.TERMINATED, origin=Origin(number=signal.SIGTERM, sender_pid=12))
    hung = scene.die(
        [], ExitCode.TERMINATED, origin=Origin(number=signal.SIGTERM, sender_pid=12), stalled=True
    )
    unknown = scene.die([])

    assert crashed.reason.startswith("segmentation_fault (signal SIGSEGV raised by itself) while ready")
    assert sent.reason.startswith("signalled (signal SIGSEGV sent by process 12 (zsh)) while ready")
    assert asked.reason.startswith(
        "terminated (exit status 71, SIGTERM sent by process 12 (which has ended)) while ready"
    )
    assert hung.reason.startswith("hung (exit status 71) while ready")
    assert unknown.reason.startswith("segmentation_fault (signal SIGSEGV) while ready")
    assert [one.origin and one.origin.sender_pid for one in (crashed, sent, asked, hung, unknown)] == [
        None,
        12,
        12,
        None,
        None,
    ]


def test_a_request_that_workers_are_killed_on_at_its_first_tokens_ends_before_the_model_is_given_up() -> None:
    scene = Scene()
    (request,) = make(True)
    for _ in range(4):
        aftermath = scene.die([request], -9)
        if aftermath.failed:
            break
        request.note_resume()
        request.deliver("x", [1], 0.0)

    assert (aftermath.failed, request.resumed) == ([request], 3)
    assert aftermath.wait_s is not None


def test_a_request_that_every_other_worker_gets_on_with_goes_on_however_often_they_are_killed() -> None:
    scene = Scene(restarts_max=1000)
    (request,) = make(True)
    for _ in range(100):
        assert scene.die([request], -9).resumed == [request]
        request.note_resume()
        assert scene.die([request], -9).resumed == [request]
        request.note_resume()
        request.deliver("x", [1] * 8, 0.0)
