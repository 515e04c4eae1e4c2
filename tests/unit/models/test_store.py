import stat
from pathlib import Path

import msgspec
import pytest

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.supervisor.models.aliases import CONVERTER_VERSION
from mlxsup.supervisor.models.names import Alias, HubId, Pullable
from mlxsup.supervisor.models.store import MANIFEST, Pulled, Store, make_manifest


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "cache")
    store.prepare()
    return store


def publish(store: Store, name: Pullable, *, converter: int | None = None, content: str = "{}") -> Pulled:
    prepared = store.partial(name) / "model"
    prepared.mkdir(parents=True)
    (prepared / "config.json").write_text(content)
    manifest = make_manifest(
        prepared, name=name.name, source="s", revision="r", licence=None, converter=converter, digest="d"
    )
    return store.publish(name, prepared, manifest)


def test_an_empty_store_has_nothing_and_a_store_that_is_not_there_neither(
    store: Store, tmp_path: Path
) -> None:
    assert store.find(Alias("a")) is None
    assert store.pulled() == []
    assert Store(tmp_path / "nowhere").pulled() == []


def test_a_published_model_is_found_with_its_digest_and_size(store: Store) -> None:
    pulled = publish(store, HubId("Owner/Name"))
    assert store.find(HubId("Owner/Name")) == pulled
    assert (pulled.name, pulled.digest, pulled.bytes_on_disk) == ("Owner/Name", "d", 2)
    assert (pulled.path / "config.json").read_text() == "{}"


def test_a_hub_id_is_one_model_however_its_letters_are_cased(store: Store) -> None:
    publish(store, HubId("Owner/Name"))
    assert store.find(HubId("owner/NAME")) is not None


def test_the_pulled_models_are_listed_by_name(store: Store) -> None:
    for name in ("b", "a/z", "a/b"):
        publish(store, HubId(name))
    assert [model.name for model in store.pulled()] == ["a/b", "a/z", "b"]


def test_only_the_user_may_enter_the_store(store: Store) -> None:
    modes = [stat.S_IMODE((store.root / part).stat().st_mode) for part in ("models", "partial", "locks")]
    assert modes == [0o700] * 3


def test_a_model_without_its_manifest_is_not_there(store: Store) -> None:
    (publish(store, Alias("a")).path / MANIFEST).unlink()
    assert store.find(Alias("a")) is None
    assert store.pulled() == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', "\udcff"])
def test_a_model_with_a_damaged_manifest_is_not_there(store: Store, text: str) -> None:
    (publish(store, Alias("a")).path / MANIFEST).write_bytes(text.encode(errors="surrogateescape"))
    assert store.find(Alias("a")) is None


def test_a_model_with_a_file_missing_grown_or_replaced_by_a_link_is_not_there(
    store: Store, tmp_path: Path
) -> None:
    config = publish(store, Alias("a")).path / "config.json"
    config.write_text("{} ")
    assert store.find(Alias("a")) is None
    config.unlink()
    assert store.find(Alias("a")) is None
    (tmp_path / "other").write_text("{}")
    config.symlink_to(tmp_path / "other")
    assert store.find(Alias("a")) is None


def test_a_model_of_another_converter_or_format_is_not_current(store: Store) -> None:
    assert publish(store, Alias("now"), converter=CONVERTER_VERSION).path.exists()
    assert store.find(Alias("now")) is not None
    publish(store, Alias("old"), converter=CONVERTER_VERSION - 1)
    assert store.find(Alias("old")) is None
    later = publish(store, Alias("later"))
    manifest = msgspec.structs.replace(later.manifest, format=99)
    (later.path / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    assert store.find(Alias("later")) is None


def test_publishing_again_replaces_what_was_there(store: Store) -> None:
    publish(store, Alias("a"))
    again = publish(store, Alias("a"), content='{"a": 1}')
    assert store.find(Alias("a")) == again
    assert (again.path / "config.json").read_text() == '{"a": 1}'
    store.remove_leftovers(Alias("a"))
    assert not store.partial(Alias("a")).exists()


@pytest.mark.parametrize("part", ["models", "partial"])
def test_a_link_in_the_store_does_not_lead_out_of_it(store: Store, tmp_path: Path, part: str) -> None:
    (tmp_path / "outside").mkdir()
    (store.root / part / "a").symlink_to(tmp_path / "outside")
    with pytest.raises(RpcError, match=f"{part}/a in the model cache") as caught:
        (store.folder if part == "models" else store.partial)(Alias("a"))
    assert caught.value.kind is ErrorKind.MODEL_LOAD_FAILED
    assert str(tmp_path) not in caught.value.message


def test_a_store_below_a_link_of_the_users_works(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    store = Store(tmp_path / "link")
    store.prepare()
    assert publish(store, Alias("a")) == store.find(Alias("a"))


def test_a_linked_model_is_not_listed(store: Store, tmp_path: Path) -> None:
    publish(store, Alias("a")).path.rename(tmp_path / "elsewhere")
    (store.root / "models" / "a").symlink_to(tmp_path / "elsewhere")
    assert store.pulled() == []
