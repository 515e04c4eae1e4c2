"""The soft limit of open files is raised as far as it is needed and may be; what is missing is said once."""

import resource
from collections.abc import Callable

import pytest

from mlxsup.config.schema import Config, Model, Server, Worker
from mlxsup.supervisor.endpoint.descriptor_limit import descriptors_needed, raise_descriptor_limit

Limits = list[tuple[int, int]]


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Limits:
    """The last is the one that holds; a test puts in the first."""
    held: Limits = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: held[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: held.append(limit))
    return held


@pytest.mark.parametrize("hard", [400, 10_000, resource.RLIM_INFINITY])
def test_a_limit_that_is_too_low_is_raised_to_what_is_needed(
    limits: Limits, caplog: pytest.LogCaptureFixture, hard: int
) -> None:
    limits.append((256, hard))
    raise_descriptor_limit(400)
    assert limits[1:] == [(400, hard)]
    assert caplog.messages == []


@pytest.mark.parametrize("soft", [400, 10_000, resource.RLIM_INFINITY])
def test_a_limit_that_is_high_enough_stays(limits: Limits, soft: int) -> None:
    limits.append((soft, resource.RLIM_INFINITY))
    raise_descriptor_limit(400)
    assert len(limits) == 1


def test_where_the_hard_limit_is_too_low_one_warning_has_both_numbers(
    limits: Limits, caplog: pytest.LogCaptureFixture
) -> None:
    limits.append((256, 300))
    raise_descriptor_limit(400)
    assert limits[1:] == [(300, 300)]
    (message,) = caplog.messages
    assert "may open 300 files" in message
    assert "need 400" in message


def test_where_the_kernel_refuses_what_the_hard_limit_allows_the_old_one_is_told(
    limits: Limits, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("invalid argument")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    limits.append((256, resource.RLIM_INFINITY))
    raise_descriptor_limit(400)
    assert "may open 256 files" in caplog.text


@pytest.mark.parametrize(
    "more",
    [
        lambda: Config(server=Server(connections_max=1000)),
        lambda: Config(server=Server(pulls_max=10)),
        lambda: Config(worker=Worker(spares=10)),
        lambda: Config(models={"a": Model(), "b": Model()}),
    ],
    ids=["connections", "pulls", "spares", "models"],
)
def test_more_of_anything_needs_more(more: Callable[[], Config]) -> None:
    assert descriptors_needed(more()) > descriptors_needed(Config())
