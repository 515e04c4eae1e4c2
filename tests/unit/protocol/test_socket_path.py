from pathlib import Path

import pytest

from mlxsup.protocol.socket_path import default_socket

HOME = Path("/home/u")


@pytest.mark.parametrize(
    ("platform", "environment", "path"),
    [
        ("linux", {"XDG_RUNTIME_DIR": "/run/user/1000"}, "/run/user/1000/mlxsup/mlxsup.sock"),
        ("linux", {}, "/home/u/.local/state/mlxsup/mlxsup.sock"),
        ("linux", {"XDG_RUNTIME_DIR": ""}, "/home/u/.local/state/mlxsup/mlxsup.sock"),
        ("linux", {"XDG_RUNTIME_DIR": "relative"}, "/home/u/.local/state/mlxsup/mlxsup.sock"),
        ("darwin", {}, "/home/u/Library/Caches/mlxsup/mlxsup.sock"),
        ("darwin", {"XDG_RUNTIME_DIR": "/run/user/1000"}, "/home/u/Library/Caches/mlxsup/mlxsup.sock"),
        ("linux", {"MLXSUP_SOCKET": "/s", "XDG_RUNTIME_DIR": "/run/user/1000"}, "/s"),
        ("darwin", {"MLXSUP_SOCKET": "/s"}, "/s"),
        ("linux", {"MLXSUP_SOCKET": "", "XDG_RUNTIME_DIR": "/r"}, "/r/mlxsup/mlxsup.sock"),
    ],
)
def test_the_socket_is_where_the_platform_and_the_environment_say(
    platform: str, environment: dict[str, str], path: str
) -> None:
    assert default_socket(platform, environment, HOME) == Path(path)


@pytest.mark.parametrize("platform", ["linux", "darwin", "freebsd14"])
def test_nothing_is_ever_in_a_folder_that_anybody_can_write_to(platform: str) -> None:
    assert default_socket(platform, {"TMPDIR": "/tmp"}, HOME).is_relative_to(HOME)
