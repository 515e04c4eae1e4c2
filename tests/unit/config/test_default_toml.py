"""`default.toml` is the documentation of the configuration's types; it says no less and no more than they do."""

import re
import tomllib
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest

import mlxsup.config.schema as schema
from mlxsup.config.load import load_config
from mlxsup.config.schema import DEFAULT_MODEL, Config
from mlxsup.protocol.generation import Priority

assert schema.__file__ is not None
TEXT = Path(schema.__file__).with_name("default.toml").read_text(encoding="utf-8")

_SET = re.compile(r"^(?P<key>\w+) = ", re.MULTILINE)
_COMMENTED = re.compile(r"^# (?P<key>\w+) = (?P<value>.+)$", re.MULTILINE)
# Also of a section that only shows how it is written.
_HEADER = re.compile(r"^(?:# )?\[([^\]\s]+)\]\n", re.MULTILINE)
_SHOWN = f"models.{DEFAULT_MODEL}.slo.interactive"
_MEANING = re.compile(r"^# (?P<keys>\w+(?:, \w+)*): \S", re.MULTILINE)

SECTIONS: dict[str, Any] = {
    "server": schema.Server,
    "generation": schema.Generation,
    "worker": schema.Worker,
    "recovery": schema.Recovery,
    "scheduling": schema.Scheduling,
    "memory": schema.Memory,
    "qos": schema.Qos,
    f"models.{DEFAULT_MODEL}": schema.Model,
    _SHOWN: schema.Slo,
}


def parts() -> dict[str, str]:
    """The text below each header."""
    _, *rest = _HEADER.split(TEXT)
    return dict(zip(rest[::2], rest[1::2], strict=True))


def fields(section: str) -> dict[str, msgspec.structs.FieldInfo]:
    """But those that are tables of their own."""
    found = {field.encode_name: field for field in msgspec.structs.fields(SECTIONS[section])}
    return {name: field for name, field in found.items() if typing.get_origin(field.type) is not dict}


def test_the_file_has_the_sections_of_the_types_in_their_order() -> None:
    names = [name.split(".")[0] for name in parts()]
    assert list(dict.fromkeys(names)) == [field.encode_name for field in msgspec.structs.fields(Config)]
    assert list(parts()) == list(SECTIONS)


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_has_every_key_of_its_type_in_its_order_and_nothing_else(section: str) -> None:
    text = parts()[section]
    found = [
        (match.start(), match["key"]) for pattern in (_SET, _COMMENTED) for match in pattern.finditer(text)
    ]
    assert [key for _, key in sorted(found)] == list(fields(section))


@pytest.mark.parametrize("section", SECTIONS)
def test_the_keys_that_are_commented_out_are_the_ones_without_a_default(section: str) -> None:
    commented = {match["key"] for match in _COMMENTED.finditer(parts()[section])}
    own_source = {"source"} if section == f"models.{DEFAULT_MODEL}" else set()
    assert commented | own_source == {
        name for name, field in fields(section).items() if field.default is None or section == _SHOWN
    }


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_has_its_meaning_written_above_it(section: str) -> None:
    meant = [key for match in _MEANING.finditer(parts()[section]) for key in match["keys"].split(", ")]
    assert sorted(set(meant) & set(fields(section))) == sorted(fields(section))


def test_its_values_are_the_defaults_of_the_types() -> None:
    table = tomllib.loads(TEXT)
    (model,) = table.pop("models").values()
    assert model.pop("source") == DEFAULT_MODEL
    for section, values in {**table, f"models.{DEFAULT_MODEL}": model}.items():
        defaults = {
            name: value
            for name, value in msgspec.to_builtins(SECTIONS[section]()).items()
            if name in fields(section)
        }
        assert values == {name: _as_toml(value) for name, value in defaults.items() if value is not None}
        kinds = {name: type(value) for name, value in values.items()}
        assert kinds == {name: type(_as_toml(defaults[name])) for name in values}


def _as_toml(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_loading_it_is_loading_nothing() -> None:
    loaded, bare = load_config(TEXT, {}), load_config("", {})
    named = msgspec.structs.replace(bare.models[DEFAULT_MODEL], source=DEFAULT_MODEL)
    assert loaded == msgspec.structs.replace(bare, models={DEFAULT_MODEL: named})


def test_with_every_comment_taken_off_it_is_still_a_good_configuration() -> None:
    config = load_config(_uncommented(), {})
    for section, values in (("server", config.server), ("worker", config.worker)):
        assert None not in [getattr(values, name) for name in fields(section)]
    model = config.models[DEFAULT_MODEL]
    assert None not in msgspec.to_builtins(model).values()
    assert None not in msgspec.to_builtins(model.slo[Priority.INTERACTIVE]).values()


def _uncommented() -> str:
    return _HEADER.sub(r"[\1]\n", _COMMENTED.sub(r"\g<key> = \g<value>", TEXT))


def test_the_values_of_the_table_that_only_shows_how_it_is_written_are_its_defaults_where_it_has_any() -> (
    None
):
    slo = load_config(_uncommented(), {}).models[DEFAULT_MODEL].slo[Priority.INTERACTIVE]
    assert {
        name: getattr(slo, name) for name, field in fields(_SHOWN).items() if field.default is not None
    } == {name: field.default for name, field in fields(_SHOWN).items() if field.default is not None}


RANGES = re.compile(r"^# (?P<key>\w+): .*?(?P<low>-?[\d.]+) to (?P<high>[\d.]+)\.?$", re.MULTILINE)


@pytest.mark.parametrize(
    ("section", "key", "low", "high"),
    [
        (section, match["key"], float(match["low"].rstrip(".")), float(match["high"].rstrip(".")))
        for section, text in parts().items()
        for match in RANGES.finditer(text)
    ],
)
def test_a_range_that_is_written_down_is_the_range_that_is_allowed(
    section: str, key: str, low: float, high: float
) -> None:
    kind = fields(section)[key].type
    number = int if "int" in str(kind) else float
    for value in (low, high):
        assert msgspec.convert(number(value), kind) == value
    step = 1 if number is int else 1e-6
    for value in (low - step, high + step):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(number(value), kind)


def test_ranges_are_found_where_they_are_written_down() -> None:
    assert sum(len(RANGES.findall(text)) for text in parts().values()) >= 10


@pytest.mark.parametrize("relation", schema.RELATIONS, ids=lambda relation: relation.key)
def test_a_bound_that_another_key_sets_is_written_above_the_key(relation: schema.Relation) -> None:
    section, key = relation.key.split(".")
    meaning = parts()[section].partition(f"# {key}: ")[2].partition(f"\n{key} = ")[0]
    of = relation.of.removeprefix(f"{section}.")
    bound = f"at least {relation.times} times {of}" if relation.times > 1 else f"not less than {of}"
    assert bound in " ".join(meaning.split("\n# ")).lower()
