from pathlib import Path

import pytest

from mlxsup.config.locations import Locations, locate

HOME = Path("/home/u")
XDG = {
    "XDG_CACHE_HOME": "/x/cache",
    "XDG_CONFIG_HOME": "/x/config",
    "XDG_RUNTIME_DIR": "/x/run",
    "XDG_STATE_HOME": "/x/state",
}


def places(config_file: str, socket: str, cache: str, state: str) -> Locations:
    return Locations(config_file=Path(config_file), socket=Path(socket), cache=Path(cache), state=Path(state))


def test_on_linux_they_are_below_home() -> None:
    assert locate("linux", {}, HOME) == places(
        "/home/u/.config/mlxsup/config.toml",
        "/home/u/.local/state/mlxsup/mlxsup.sock",
        "/home/u/.cache/mlxsup",
        "/home/u/.local/state/mlxsup",
    )


def test_on_linux_they_are_where_xdg_says() -> None:
    assert locate("linux", XDG, HOME) == places(
        "/x/config/mlxsup/config.toml", "/x/run/mlxsup/mlxsup.sock", "/x/cache/mlxsup", "/x/state/mlxsup"
    )


@pytest.mark.parametrize("environment", [{}, XDG], ids=["", "with XDG's variables"])
def test_on_a_mac_they_are_in_the_library(environment: dict[str, str]) -> None:
    assert locate("darwin", environment, HOME) == places(
        "/home/u/Library/Application Support/mlxsup/config.toml",
        "/home/u/Library/Caches/mlxsup/mlxsup.sock",
        "/home/u/Library/Caches/mlxsup",
        "/home/u/Library/Application Support/mlxsup",
    )


@pytest.mark.parametrize("value", ["", "relative/folder", "./x", "~/x"])
def test_a_variable_of_xdg_that_is_no_absolute_path_is_ignored(value: str) -> None:
    assert locate("linux", dict.fromkeys(XDG, value), HOME) == locate("linux", {}, HOME)


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_our_own_variables_come_before_the_platform(platform: str) -> None:
    own = {"MLXSUP_CONFIG": "here.toml", "MLXSUP_SOCKET": "/s", "MLXSUP_STATE": "/deaths"}
    located = locate(platform, {**XDG, **own}, HOME)
    assert (located.config_file, located.socket) == (Path("here.toml"), Path("/s"))
    assert located.state == Path("/deaths")
    assert located.cache == locate(platform, XDG, HOME).cache


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_our_own_variables_say_nothing_when_empty(platform: str) -> None:
    own = dict.fromkeys(("MLXSUP_CONFIG", "MLXSUP_SOCKET", "MLXSUP_STATE"), "")
    assert locate(platform, own, HOME) == locate(platform, {}, HOME)
