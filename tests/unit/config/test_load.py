import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.config.load import ConfigError, load_config
from mlxsup.config.schema import DEFAULT_MODEL, RELATIONS, Config, Model, Relation, Server, Slo
from mlxsup.protocol.generation import Priority


def faults(text: str, environment: dict[str, str] | None = None) -> dict[str, str]:
    """Paths of everything that is wrong, and what is said about it."""
    with pytest.raises(ConfigError) as caught:
        load_config(text, environment or {})
    found = {fault.path: fault.message for fault in caught.value.faults}
    assert len(found) == len(caught.value.faults)
    assert str(caught.value).splitlines() == [str(fault) for fault in caught.value.faults]
    return found


def test_nothing_at_all_is_the_default_model_with_the_defaults() -> None:
    assert load_config("", {}) == Config(models={DEFAULT_MODEL: Model()})


def test_a_file_that_names_models_has_these_and_no_other() -> None:
    config = load_config('[models.a]\n[models."owner/b"]\nsource = "x"\npreload = true\n', {})
    assert config.models == {"a": Model(), "owner/b": Model(source="x", preload=True)}


def test_everything_that_is_wrong_is_told_at_once_each_by_its_path() -> None:
    found = faults(
        """
        surprise = 1
        generation = 3
        [server]
        frame_bytes_max = 1
        drain = 5
        drain_s = "soon"
        [worker]
        command = ["a", 1]
        zzz = 1
        [models]
        flat = 1
        [models."no good"]
        [models.m]
        batch_sequences_max = 0
        preloaded = true
        """
    )
    assert found == {
        "surprise": "is not a known key; known are server, generation, worker, recovery, scheduling, memory, qos, models",
        "generation": "is a table: write [generation]",
        "server.frame_bytes_max": "Expected `int` >= 4096, got 1",
        "server.drain": "is not a known key; did you mean `drain_s`?",
        "server.drain_s": "Expected `float`, got `str`",
        "worker.command": "Expected `str`, got `int` - at `$[1]`",
        "worker.zzz": found["worker.zzz"],
        "models.flat": "is a table: write [models.flat]",
        'models."no good"': "a model's name is letters, digits and . _ - (and one /), without .. or --",
        "models.m.batch_sequences_max": "Expected `int` >= 1, got 0",
        "models.m.preloaded": "is not a known key; did you mean `preload`?",
    }
    assert found["worker.zzz"].startswith("is not a known key; known are command, hello_timeout_s, ")


def test_models_that_are_no_table_are_told_how_to_be_written() -> None:
    assert faults("models = 1") == {"models": "is a table of models: write [models.NAME]"}


@pytest.mark.parametrize(
    "text", ["[server", "a = ", "a = 1\na = 2", "[server]\n[server]\n", "\x00", "v = 'a\nb'"]
)
def test_what_is_no_toml_is_one_fault_that_says_where(text: str) -> None:
    ((path, message),) = faults(text).items()
    assert path == "TOML"
    assert re.search(r"\(at (line \d+, column \d+|end of document)\)$", message)


def test_toml_nested_beyond_reading_is_a_fault_and_no_traceback() -> None:
    assert list(faults("a = " + "[" * 100_000)) == ["TOML"]


@pytest.mark.parametrize(
    "value", ["nan", "inf", "-inf", "-0.001", "86400.1", "true", '"5"', "[]", "1979-05-27"]
)
def test_a_duration_is_a_finite_number_within_a_day(value: str) -> None:
    assert list(faults(f"[server]\ndrain_s = {value}")) == ["server.drain_s"]


@pytest.mark.parametrize("key", ["temperature", "top_p", "min_p", "presence_penalty"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_no_default_of_generation_is_an_infinite_number_or_none(key: str, value: str) -> None:
    assert list(faults(f"[generation]\n{key} = {value}")) == [f"generation.{key}"]


def test_a_whole_number_will_do_for_a_duration_and_a_fraction_will_not_for_a_count() -> None:
    assert load_config("[server]\ndrain_s = 5", {}).server.drain_s == 5.0
    assert list(faults("[server]\nbatch_calls_max = 5.5")) == ["server.batch_calls_max"]


@pytest.mark.parametrize("name", ["a", "A1", "smollm2-135m", "owner/name", "a_b.c-d", "a" * 96])
def test_a_models_name_may_be_like_a_hub_id(name: str) -> None:
    assert name in load_config(f'[models."{name}"]', {}).models


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "/etc",
        "../x",
        "a/b/c",
        "-a",
        "a b",
        "a\\n",
        "é",
        "aé",
        "a²",
        "a" * 97,
        "a/",
        "/a",
        "~",
        "a--b",
        "a/b..c",
    ],
    ids=ascii,
)
def test_a_models_name_is_never_like_a_path_nor_of_other_letters(name: str) -> None:
    assert len(faults(f'[models."{name}"]')) == 1


def test_a_fault_below_a_name_that_needs_quotes_is_told_as_toml_writes_it() -> None:
    assert list(faults('[models."llama-3.2"]\npin = 1')) == ['models."llama-3.2".pin']
    assert list(faults('"a\\nb" = 1')) == ['"a\\nb"']


def test_the_environment_comes_before_the_file() -> None:
    config = load_config("[server]\ndrain_s = 5\nbatch_calls_max = 7", {"MLXSUP_SERVER__DRAIN_S": "9"})
    assert config.server == Server(drain_s=9.0, batch_calls_max=7)


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("MLXSUP_SERVER__SOCKET", "/run/s.sock", "/run/s.sock"),
        ("MLXSUP_SERVER__SOCKET", "'/run/s.sock'", "/run/s.sock"),
        ("MLXSUP_SERVER__DRAIN_S", "0.5", 0.5),
        ("MLXSUP_SERVER__FRAME_BYTES_MAX", "8_192", 8192),
        ("MLXSUP_WORKER__COMMAND", "['nice', 'python']", ("nice", "python")),
        ("MLXSUP_GENERATION__TOP_K", "40", 40),
    ],
)
def test_a_variable_holds_a_toml_value_or_plain_text(variable: str, text: str, value: object) -> None:
    section, key = variable.removeprefix("MLXSUP_").lower().split("__")
    assert getattr(getattr(load_config("", {variable: text}), section), key) == value


@pytest.mark.parametrize(
    "variable", ["MLXSUP_SERVER__DRAIN", "MLXSUP_SERVR__DRAIN_S", "MLXSUP_MODELS__M", "MLXSUP_MODELS__SOURCE"]
)
def test_a_variable_that_names_no_key_is_a_fault_under_its_own_name(variable: str) -> None:
    assert list(faults("", {variable: "1"})) == [variable]


@pytest.mark.parametrize(
    "variable",
    ["MLXSUP_SOCKET", "MLXSUP_CONFIG", "MLXSUP_TOKEN", "XMLXSUP_SERVER__X", "PATH", "mlxsup_server__x"],
)
def test_other_variables_are_not_looked_at(variable: str) -> None:
    assert load_config("", {variable: "1"}) == load_config("", {})


def test_a_bad_value_from_the_environment_is_told_by_its_variable_beside_the_files_faults() -> None:
    found = faults("[worker]\nx = 1", {"MLXSUP_SERVER__DRAIN_S": "soon", "MLXSUP_SERVER__NO": "1"})
    assert sorted(found) == ["MLXSUP_SERVER__DRAIN_S", "MLXSUP_SERVER__NO", "worker.x"]


def test_a_variable_for_a_section_that_is_no_table_does_not_hide_the_files_fault() -> None:
    assert list(faults("server = 1", {"MLXSUP_SERVER__DRAIN_S": "5"})) == ["server"]


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation.key)
def test_a_value_that_another_one_bounds_is_told_with_both_keys_and_both_values(relation: Relation) -> None:
    key, of = relation.key.split(".")[1], relation.of.split(".")[1]
    tables = {relation.key.split(".")[0]: "", relation.of.split(".")[0]: ""}
    tables[relation.key.split(".")[0]] += f"{key} = {relation.times * 2.5 - 0.01}\n"
    tables[relation.of.split(".")[0]] += f"{of} = 2.5\n"
    # Nor may this one break the bound that yet another one sets.
    for other in RELATIONS:
        if other.key == relation.of:
            section, least = other.of.split(".")
            tables[section] += f"{least} = 0.1\n"
    text = "".join(f"[{section}]\n{keys}" for section, keys in tables.items())

    ((path, message),) = faults(text).items()

    assert path == relation.key
    assert f"is {relation.times * 2.5 - 0.01}, " in message
    assert f"{relation.of}, which is 2.5; " in message
    assert message.endswith("raise the one or lower the other")
    assert load_config(text.replace(f"{of} = 2.5", f"{of} = 2.49"), {})


def test_the_bound_itself_is_allowed_however_its_product_rounds() -> None:
    assert load_config("[worker]\nheartbeat_interval_s = 0.1\n[recovery]\nsilence_s = 0.3", {})


def test_a_bound_that_nobody_wrote_down_is_told_as_the_default() -> None:
    assert faults("[recovery]\nbreaker_open_s = 400") == {
        "recovery.breaker_open_max_s": "is 300.0 (the default), less than recovery.breaker_open_s, which is 400.0; "
        "raise the one or lower the other"
    }


def test_bounds_are_told_beside_all_other_faults_and_not_for_values_that_have_their_own() -> None:
    found = faults(
        "[worker]\nheartbeat_interval_s = 20\nx = 1\n[recovery]\nbreaker_open_s = 0\nbreaker_open_max_s = -1"
    )
    assert list(found) == [
        "worker.x",
        "recovery.breaker_open_s",
        "recovery.breaker_open_max_s",
        "recovery.silence_s",
    ]
    assert list(faults("recovery = 1\n[worker]\nheartbeat_interval_s = 20")) == ["recovery"]


def test_a_bound_that_the_environment_broke_is_told_by_its_variable() -> None:
    base, top = "MLXSUP_RECOVERY__RESTART_BACKOFF_BASE_S", "MLXSUP_RECOVERY__RESTART_BACKOFF_MAX_S"
    ((path, message),) = faults("", {base: "100"}).items()
    assert (path, base in message) == ("recovery.restart_backoff_max_s", True)
    assert list(faults("", {top: "0.5"})) == [top]


def test_every_bad_key_of_an_objective_is_told_by_its_path() -> None:
    found = faults(
        """
        [models.a]
        slo = 1
        [models.b.slo]
        high = 2
        [models.c.slo.urgent]
        ttft_s = 1
        [models.c.slo.interactive]
        ttft_s = -1
        ttft = 1
        error_share_max = 1
        actions = ["event", "reboot"]
        [models."c.d".slo.normal]
        tokens_per_s_min = 0
        target_share = 1
        """
    )
    assert found == {
        "models.a.slo": "is a table of tiers: write [models.a.slo.TIER]",
        "models.b.slo.high": "is a table: write [models.b.slo.high]",
        "models.c.slo.urgent": "is not a tier; known are interactive, high, normal, background",
        "models.c.slo.interactive.ttft_s": "Expected `float` > 0.0, got -1",
        "models.c.slo.interactive.ttft": "is not a known key; did you mean `ttft_s`?",
        "models.c.slo.interactive.error_share_max": "Expected `float` < 1.0, got 1",
        "models.c.slo.interactive.actions": "Invalid enum value 'reboot' - at `$[1]`, got ['event', 'reboot']",
        'models."c.d".slo.normal.tokens_per_s_min': "Expected `float` >= 0.001, got 0",
        'models."c.d".slo.normal.target_share': "Expected `float` < 1.0, got 1",
    }


def test_an_objective_that_could_never_be_broken_is_a_fault_beside_all_others() -> None:
    found = faults(
        """
        [server]
        x = 1
        [models.m.slo.high]
        ttft_s = 1
        target_share = 0.8
        error_share_max = 0.5
        [models.m.slo.normal]
        actions = ["shed"]
        [models.m.slo.background]
        tokens_per_s_min = 5
        actions = ["event", "shed"]
        """
    )
    assert found.pop("server.x")
    assert found == {
        "models.m.slo.high.target_share": "is 0.8: with that a burn rate can't be above 5, so never qos.burn_rate_max, "
        "which is 6.0; raise the one or lower the other",
        "models.m.slo.high.error_share_max": "is 0.5: with that a burn rate can't be above 2, so never "
        "qos.burn_rate_max, which is 6.0; lower one of them",
        "models.m.slo.normal": "sets no objective: give it at least one of ttft_s, inter_token_s, tokens_per_s_min, "
        "error_share_max",
        "models.m.slo.background.actions": "`shed` has nothing to act on: no tier is less urgent than background",
    }


def test_a_burn_rate_that_the_environment_lowers_is_within_reach() -> None:
    text = "[models.m.slo.high]\nttft_s = 1\ntarget_share = 0.8"
    assert load_config(text, {"MLXSUP_QOS__BURN_RATE_MAX": "4"}).models["m"].slo[Priority.HIGH] == Slo(
        ttft_s=1.0, target_share=0.8
    )


@pytest.mark.parametrize(
    ("text", "variable", "in_file", "in_environment"),
    [
        ("[server]\ndrain = 1", None, True, False),
        ("", ("MLXSUP_SERVER__DRAIN_S", "x"), False, True),
        ("", ("MLXSUP_SERVER__DRAIN", "1"), False, True),
        ("", ("MLXSUP_RECOVERY__SILENCE_S", "1"), False, True),
        ("[worker]\nheartbeat_interval_s = 5", ("MLXSUP_RECOVERY__SILENCE_S", "9"), True, True),
        ("[recovery]\nfailed_hold_s = 999", ("MLXSUP_SERVER__DRAIN_S", "9"), True, False),
    ],
)
def test_a_fault_says_where_it_is_to_be_mended(
    text: str, variable: tuple[str, str] | None, in_file: bool, in_environment: bool
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(text, dict([variable] if variable else []))
    (fault,) = caught.value.faults
    assert (fault.in_file, fault.in_environment) == (in_file, in_environment)


@given(st.text(max_size=60), st.text(max_size=20).filter(lambda text: "\x00" not in text))
def test_whatever_is_written_is_a_configuration_or_a_list_of_faults(text: str, value: str) -> None:
    outcome: object
    try:
        outcome = load_config(text, {"MLXSUP_SERVER__SOCKET": value}).models
    except ConfigError as error:
        outcome = error.faults
    assert outcome
