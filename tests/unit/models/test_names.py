from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.supervisor.models.aliases import ALIASES
from mlxsup.supervisor.models.names import Alias, Folder, HubId, check_name, parse_pullable, parse_source


def test_an_alias_comes_before_a_hub_id_of_the_same_name() -> None:
    assert parse_pullable("smollm2-135m", aliases=ALIASES) == Alias("smollm2-135m")
    assert parse_pullable("smollm2-360m", aliases=ALIASES) == HubId("smollm2-360m")


@pytest.mark.parametrize("name", ["gpt2", "mlx-community/Qwen3-0.6B-4bit", "a/b", "A" * 96 + "/" + "b" * 96])
def test_a_hub_id_is_taken_as_it_is_written(name: str) -> None:
    assert parse_pullable(name, aliases=()) == HubId(name)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            " ",
            "a b",
            "a\n",
            "a/b\n",
            "a\0",
            "a//b",
            "a/b/c",
            "a/",
            "-a",
            "_a",
            "a/.b",
            "a..b",
            "a--b",
            "a/b..c",
        ),
        *(
            "A" * 97,
            "a/" + "b" * 97,
            "ä",
            "a/ß",
            "٣",
            "a\\b",
            "c:\\models",
            "https://host/a",
            "a?b",
            "a%2e%2e",
        ),
    ],
)
def test_what_is_no_name_is_refused_by_its_place_in_the_request(name: str) -> None:
    with pytest.raises(RpcError, match="cannot use") as caught:
        check_name(name, path="$.model")
    assert (caught.value.kind, caught.value.data.path) == (ErrorKind.INVALID_PARAMS, "$.model")


@pytest.mark.parametrize("path", ["/etc", "./m", "../m", "~/m", "~", ".", "..", "~root/m", "/"])
def test_a_request_can_not_name_a_folder_and_is_told_where_one_is_named(path: str) -> None:
    with pytest.raises(RpcError, match=r"in the configuration, as `source`") as caught:
        parse_pullable(path, aliases=ALIASES)
    assert caught.value.kind is ErrorKind.INVALID_PARAMS


@given(st.text(max_size=300))
def test_no_name_that_a_request_may_give_can_climb_or_be_absolute(text: str) -> None:
    try:
        name = check_name(text)
    except RpcError:
        return
    path = Path(name)
    assert not path.is_absolute()
    assert ".." not in path.parts
    assert len(path.parts) <= 2


@given(st.from_regex(r"[A-Za-z0-9][\w.-]{0,20}(/[A-Za-z0-9][\w.-]{0,20})?", fullmatch=True))
def test_names_of_the_alphabet_are_taken_but_for_doubled_dots_and_dashes(name: str) -> None:
    if name.isascii() and ".." not in name and "--" not in name:
        assert check_name(name) == name
    else:
        with pytest.raises(RpcError):
            check_name(name)


@pytest.mark.parametrize(
    ("written", "located"),
    [
        ("/models/a", "/models/a"),
        ("./a", "/etc/mlxsup/a"),
        ("../a", "/etc/mlxsup/../a"),
        ("~/models/a", "/home/u/models/a"),
        ("~", "/home/u"),
        (".", "/etc/mlxsup"),
    ],
)
def test_a_folder_of_the_configuration_is_found_from_the_home_or_the_configuration(
    written: str, located: str
) -> None:
    source = parse_source(written, aliases=ALIASES)
    assert isinstance(source, Folder)
    assert source.locate(base=Path("/etc/mlxsup"), home=Path("/home/u")) == Path(located)


@pytest.mark.parametrize("written", ["~root", "~root/model", "/models/\0"])
def test_a_folder_that_can_not_be_found_is_refused(written: str) -> None:
    with pytest.raises(RpcError, match="as a folder"):
        parse_source(written, aliases=ALIASES)


def test_a_source_without_a_folders_beginning_is_an_alias_or_a_hub_id() -> None:
    assert parse_source("smollm2-135m", aliases=ALIASES) == Alias("smollm2-135m")
    assert parse_source("owner/name", aliases=ALIASES) == HubId("owner/name")
    with pytest.raises(RpcError) as caught:
        parse_source("models/of/mine", aliases=ALIASES)
    assert caught.value.data.path is None
