"""A configuration that can't be used: exit status 78, everything that is wrong on stderr, and nothing begun."""

import pytest

from tests.process.endpoint.conftest import User

BAD = "[server]\ndrain = 1\nframe_bytes_max = 1\n"


@pytest.mark.parametrize(
    "command", [("start",), ("stdio",), ("status",), ("config", "check", "config.toml")], ids=" ".join
)
def test_every_fault_is_told_at_once_with_its_path(user: User, command: tuple[str, ...]) -> None:
    user.config.write_text(BAD)
    refused = user.run(*command)
    assert (refused.status, refused.stdout) == (78, b"")
    assert "server.drain: is not a known key; did you mean `drain_s`?" in refused.stderr
    assert "server.frame_bytes_max: Expected `int` >= 4096, got 1" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not user.socket.parent.exists()


@pytest.mark.parametrize("content", [b"[server", b"\xff\xfe", b"a = " + b"[" * 5000])
def test_what_is_no_toml_is_told_in_a_sentence(user: User, content: bytes) -> None:
    user.config.write_bytes(content)
    refused = user.run("start")
    assert refused.status == 78
    assert refused.stderr.startswith("mlxsup: cannot use ")
    assert "Traceback" not in refused.stderr


def test_a_file_that_somebody_named_has_to_be_there(user: User) -> None:
    user.config.unlink()
    refused = user.run("start")
    assert refused.status == 78
    assert "there is no such file" in refused.stderr


def test_a_bad_variable_is_told_by_its_name(user: User) -> None:
    user.environment = {**user.environment, "MLXSUP_SERVER__DRAIN": "1"}
    refused = user.run("stdio")
    assert (refused.status, refused.stdout) == (78, b"")
    assert "MLXSUP_SERVER__DRAIN: names no key" in refused.stderr
    assert str(user.config) not in refused.stderr


def test_a_bad_file_and_a_bad_variable_are_both_blamed(user: User) -> None:
    user.config.write_text(BAD)
    user.environment = {**user.environment, "MLXSUP_SERVER__DRAIN": "1"}
    refused = user.run("stdio")
    assert refused.stderr.startswith(f"mlxsup: cannot use {user.config} with what the environment sets:\n")


def test_a_variable_that_names_no_file_is_told_with_it(user: User) -> None:
    user.config.unlink()
    assert f"{user.config}, which MLXSUP_CONFIG names: there is no such file" in user.run("status").stderr


def test_a_good_file_is_called_good(user: User) -> None:
    user.config.write_text("[models.a]\n[models.b]\n")
    checked = user.run("config", "check", "config.toml")
    assert (checked.status, checked.stdout) == (0, b"config.toml is good: models a, b\n")
