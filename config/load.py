"""From TOML and the environment to one frozen `Config`; every fault is reported, not just the first. Pure.

`MLXSUP_SECTION__KEY` in the environment comes before the file: `MLXSUP_SERVER__DRAIN_S=5`.
"""

import difflib
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from mlxsup.config.schema import DEFAULT_MODEL, RELATIONS, Config, Model, Qos, Relation, Slo
from mlxsup.config.slo_check import slo_problems
from mlxsup.protocol.generation import Priority

_MODEL_NAME = re.compile(r"(?!.*(\.\.|--))[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_VARIABLE = re.compile(r"^MLXSUP_([A-Z0-9]+)__([A-Z0-9_]+)$")


class ConfigFault(msgspec.Struct, frozen=True):
    """One thing that is wrong: the path of the key, or the variable that set it, and what is allowed there.

    The file and the environment say where it is to be mended: where a value was set that has a part in it.
    """

    path: str
    message: str
    in_file: bool = True
    in_environment: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class ConfigError(Exception):
    """The configuration can't be used; `faults` has everything that is wrong with it."""

    def __init__(self, faults: list[ConfigFault]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = faults


def load_config(text: str, environment: Mapping[str, str]) -> Config:
    """The configuration that a TOML text and the environment describe.

    Raises:
        ConfigError: with every fault of both.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([ConfigFault("TOML", str(error))]) from None
    except RecursionError:
        raise ConfigError([ConfigFault("TOML", "nested too deeply")]) from None
    faults: list[ConfigFault] = []
    overridden = _override(table, environment, faults)
    _check_struct(table, Config, "", faults)
    faults += _check_relations(table, overridden, faults)
    faults += _check_objectives(table, faults)
    faults = [_by_variable(fault, overridden) for fault in faults]
    if faults:
        raise ConfigError(faults)
    config = msgspec.convert(table, Config)
    if not config.models:
        config = msgspec.structs.replace(config, models={DEFAULT_MODEL: Model()})
    return config


def _override(
    table: dict[str, Any], environment: Mapping[str, str], faults: list[ConfigFault]
) -> dict[str, str]:
    """Put the environment's values over the file's; which variable set which key's path."""
    overridden = {}
    for variable, text in sorted(environment.items()):
        match = _VARIABLE.match(variable)
        if match is None:
            continue
        section, key = match[1].lower(), match[2].lower()
        fields = _struct_fields(Config)
        if section not in fields or section == "models" or key not in _struct_fields(fields[section]):
            faults.append(
                ConfigFault(
                    variable,
                    "names no key of the configuration that can be overridden",
                    in_file=False,
                    in_environment=True,
                )
            )
            continue
        try:
            value = tomllib.loads(f"v = {text}")["v"]
        except (tomllib.TOMLDecodeError, RecursionError):
            value = text
        target = table.setdefault(section, {})
        if isinstance(target, dict):
            target[key] = value
            overridden[f"{section}.{key}"] = variable
    return overridden


def _by_variable(fault: ConfigFault, overridden: Mapping[str, str]) -> ConfigFault:
    """Told by the variable that set the key, if one did."""
    variable = overridden.get(fault.path)
    if variable is None:
        return fault
    return ConfigFault(variable, fault.message, in_file=False, in_environment=True)


def _check_struct(table: Any, struct: Any, path: str, faults: list[ConfigFault]) -> None:
    if not isinstance(table, dict):
        faults.append(ConfigFault(path, f"is a table: write [{path}]"))
        return
    fields = _struct_fields(struct)
    for key, value in table.items():
        here = f"{path}.{_as_written(key)}" if path else _as_written(key)
        field = fields.get(key)
        if field is None:
            faults.append(ConfigFault(here, f"is not a known key; {_suggest(key, fields)}"))
        elif field == dict[str, Model]:
            _check_models(value, here, faults)
        elif field == dict[Priority, Slo]:
            _check_slos(value, here, faults)
        elif isinstance(field, type) and issubclass(field, msgspec.Struct):
            _check_struct(value, field, here, faults)
        else:
            _check_value(value, field, here, faults)


def _check_models(table: Any, path: str, faults: list[ConfigFault]) -> None:
    if not isinstance(table, dict):
        faults.append(ConfigFault(path, "is a table of models: write [models.NAME]"))
        return
    for name, value in table.items():
        here = f"{path}.{_as_written(name)}"
        if not _MODEL_NAME.fullmatch(name):
            faults.append(
                ConfigFault(here, "a model's name is letters, digits and . _ - (and one /), without .. or --")
            )
        _check_struct(value, Model, here, faults)


def _check_slos(table: Any, path: str, faults: list[ConfigFault]) -> None:
    if not isinstance(table, dict):
        faults.append(ConfigFault(path, f"is a table of tiers: write [{path}.TIER]"))
        return
    tiers = [tier.value for tier in Priority]
    for name, value in table.items():
        here = f"{path}.{_as_written(name)}"
        if name not in tiers:
            faults.append(ConfigFault(here, f"is not a tier; {_suggest(name, dict.fromkeys(tiers))}"))
        _check_struct(value, Slo, here, faults)


def _check_objectives(table: Mapping[str, Any], faults: list[ConfigFault]) -> list[ConfigFault]:
    """Of the tables of objectives that have no fault; the others have their `faults`."""
    bad = [fault.path for fault in faults]
    if any(path.split(".")[0] == "qos" for path in bad):
        return []
    burn_rate_max = msgspec.convert(table.get("qos", {}), Qos).burn_rate_max
    found = []
    for path, tier, slo in _slo_tables(table):
        # Also a fault of one of the tables that it stands in.
        if any(f"{path}.".startswith(f"{other}.") or other.startswith(f"{path}.") for other in bad):
            continue
        problems = slo_problems(msgspec.convert(slo, Slo), Priority(tier), burn_rate_max)
        found += [ConfigFault(f"{path}.{key}" if key else path, message) for key, message in problems]
    return found


def _slo_tables(table: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Those that are where they belong: path, tier and keys."""
    models = table.get("models")
    for name, model in models.items() if isinstance(models, dict) else ():
        slos = model.get("slo") if isinstance(model, dict) else None
        for tier, slo in slos.items() if isinstance(slos, dict) else ():
            yield f"models.{_as_written(name)}.slo.{_as_written(tier)}", tier, slo


def _check_value(value: Any, field: Any, path: str, faults: list[ConfigFault]) -> None:
    try:
        msgspec.convert(value, field)
    except msgspec.ValidationError as error:
        faults.append(ConfigFault(path, f"{error}, got {value!r}" if "got" not in str(error) else str(error)))


def _check_relations(
    table: Mapping[str, Any], overridden: Mapping[str, str], faults: list[ConfigFault]
) -> list[ConfigFault]:
    """Between the keys that are good by themselves; the others have their `faults`."""
    bad = {fault.path for fault in faults}
    found = []
    for relation in RELATIONS:
        keys = (relation.key, relation.of)
        if bad.isdisjoint({*keys, *(key.split(".")[0] for key in keys)}):
            found += _check_relation(relation, table, overridden)
    return found


def _check_relation(
    relation: Relation, table: Mapping[str, Any], overridden: Mapping[str, str]
) -> list[ConfigFault]:
    value, of = _value(relation.key, table), _value(relation.of, table)
    # 3 times 0.1 is a little more than 0.3.
    if value >= relation.times * of or math.isclose(value, relation.times * of):
        return []
    keys = (relation.key, relation.of)
    said = [f"{_value(key, table)}{'' if _is_set(key, table) else ' (the default)'}" for key in keys]
    times = f"{relation.times} times " if relation.times > 1 else ""
    why = f"{relation.why}: " if relation.why else ""
    message = (
        f"is {said[0]}, less than {times}{overridden.get(relation.of, relation.of)}, which is {said[1]}; "
        f"{why}raise the one or lower the other"
    )
    return [
        ConfigFault(
            overridden.get(relation.key, relation.key),
            message,
            in_file=any(_is_set(key, table) and key not in overridden for key in keys),
            in_environment=any(key in overridden for key in keys),
        )
    ]


def _is_set(path: str, table: Mapping[str, Any]) -> bool:
    section, key = path.split(".")
    return key in table.get(section, {})


def _value(path: str, table: Mapping[str, Any]) -> float:
    section, key = path.split(".")
    default = getattr(_struct_fields(Config)[section](), key)
    return float(table.get(section, {}).get(key, default))


def _as_written(key: str) -> str:
    """The key as TOML wants it in a path."""
    return key if _BARE_KEY.fullmatch(key) else msgspec.json.encode(key).decode()


def _struct_fields(struct: Any) -> dict[str, Any]:
    return {field.encode_name: field.type for field in msgspec.structs.fields(struct)}


def _suggest(key: str, fields: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(key, fields, n=1)
    return f"did you mean `{close[0]}`?" if close else f"known are {', '.join(fields)}"
