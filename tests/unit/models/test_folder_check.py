import json
import os
from pathlib import Path
from typing import Any

import pytest

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.supervisor.models.folder_check import check_folder
from mlxsup.supervisor.models.folder_rules import Quantization
from tests.fakes.model_folder import CONFIG, make_model_folder, safetensors


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model_folder(tmp_path / "model")


def refusal(folder: Path) -> str:
    with pytest.raises(RpcError) as caught:
        check_folder(folder)
    assert caught.value.kind is ErrorKind.MODEL_LOAD_FAILED
    assert str(folder.parent) not in caught.value.message
    return caught.value.message


def change_config(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))


def test_the_facts_of_a_good_folder_are_told(model: Path) -> None:
    facts = check_folder(model)
    assert (facts.model_type, facts.architectures) == ("llama", ("LlamaForCausalLM",))
    assert facts.weights_bytes == (model / "model.safetensors").stat().st_size
    assert facts.weight_files == ("model.safetensors",)
    assert facts.float32_bytes == 16
    assert facts.context_tokens == 8192
    assert facts.quantization == Quantization(bits=4, group_size=32)


def test_the_context_and_quantization_of_a_model_that_sees_are_its_text_parts(model: Path) -> None:
    text = {"max_position_embeddings": 4096, "quantization_config": {"bits": 8}}
    change_config(model, max_position_embeddings=None, quantization=None, text_config=text)
    facts = check_folder(model)
    assert (facts.context_tokens, facts.quantization) == (4096, Quantization(bits=8, group_size=None))


def test_a_model_that_says_neither_has_neither(model: Path) -> None:
    (model / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": true}')
    facts = check_folder(model)
    assert (facts.context_tokens, facts.quantization, facts.architectures) == (None, None, ())


def test_the_digest_changes_with_what_a_loader_reads_and_with_nothing_else(model: Path) -> None:
    before = check_folder(model).digest
    (model / "README.md").write_text("new")
    (model / "mlxsup.json").write_text("{}")
    assert check_folder(model).digest == before
    seen = {before}
    for name, content in [
        ("chat_template.jinja", b"x"),
        ("chat_template.jinja", b"y"),
        ("tokenizer.json", b"{ }"),
        ("model.safetensors", safetensors(b"12345")),
        ("config.json", json.dumps({**CONFIG, "max_position_embeddings": 8193}).encode()),
    ]:
        (model / name).write_bytes(content)
        seen.add(check_folder(model).digest)
    assert len(seen) == 6


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "its folder isn't there" in refusal(tmp_path / "model")


def test_a_folder_without_a_config_is_refused(model: Path) -> None:
    (model / "config.json").unlink()
    assert "no config.json" in refusal(model)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe\xff", b"[" * 100_000])
def test_an_unreadable_config_is_refused_by_name(model: Path, text: bytes) -> None:
    (model / "config.json").write_bytes(text)
    assert "config.json is not readable as JSON" in refusal(model)


@pytest.mark.parametrize("text", ["[]", "7", "null"])
def test_a_config_that_is_no_object_is_refused(model: Path, text: str) -> None:
    (model / "config.json").write_text(text)
    assert "config.json is not a JSON object" in refusal(model)


def test_an_oversize_config_is_refused_unread(model: Path) -> None:
    with (model / "config.json").open("ab") as file:
        file.truncate(17 * 1024 * 1024)
    assert "config.json is larger than" in refusal(model)


@pytest.mark.parametrize("key", ["auto_map", "model_file"])
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "processor_config.json"])
def test_a_configuration_that_runs_the_models_own_code_is_refused_however_deep(
    model: Path, file: str, key: str
) -> None:
    (model / file).write_text(json.dumps({**CONFIG, "a": [{"b": {key: {"AutoModel": "m.M"}}}]}))
    assert f"{file} has `{key}`" in refusal(model)


def test_a_token_that_is_called_like_such_a_key_is_no_code(model: Path) -> None:
    (model / "tokenizer.json").write_text('{"model": {"vocab": {"auto_map": 1}}}')
    (model / "vocab.json").write_text('{"auto_map": 1}')
    check_folder(model)


@pytest.mark.parametrize("found", [None, 7, "", "../llama", "a/b", "x" * 200])
def test_a_model_type_that_is_no_name_is_refused(model: Path, found: object) -> None:
    change_config(model, model_type=found)
    assert "no usable `model_type`" in refusal(model)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("pytorch_model.bin", "pickles (pytorch_model.bin)"),
        ("model.pt", "pickles (model.pt)"),
        ("weights.npz", "pickles (weights.npz)"),
        ("model.gguf", "GGUF (model.gguf)"),
        ("notes.md", "no .safetensors file"),
    ],
)
def test_a_folder_without_safetensors_is_refused_by_what_it_has_instead(
    model: Path, name: str, reason: str
) -> None:
    (model / "model.safetensors").rename(model / name)
    assert reason in refusal(model)


def test_pickles_beside_safetensors_do_no_harm(model: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(b"pickle")
    check_folder(model)


def test_a_folder_without_a_tokenizer_is_refused(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    (model / "vocab.json").write_text("{}")
    assert "no tokenizer" in refusal(model)
    (model / "merges.txt").write_text("")
    check_folder(model)


@pytest.mark.parametrize("size", [0, 4, 8, 30, -1])
def test_a_truncated_weight_file_is_refused_by_name(model: Path, size: int) -> None:
    content = safetensors()
    (model / "model.safetensors").write_bytes(content[:size])
    message = refusal(model)
    assert "model.safetensors" in message
    assert "truncated" in message


def test_a_weight_file_with_bytes_behind_its_tensors_is_refused(model: Path) -> None:
    (model / "model.safetensors").write_bytes(safetensors() + b"x")
    assert "model.safetensors: it holds 1 bytes behind its last tensor" in refusal(model)


def test_a_header_over_the_limit_is_refused_unread(model: Path) -> None:
    with (model / "model.safetensors").open("wb") as file:
        file.write((200_000_000).to_bytes(8, "little"))
        file.truncate(300_000_000)
    assert "header of model.safetensors is over" in refusal(model)


def test_a_pointer_of_git_lfs_is_named_as_what_it_is(model: Path) -> None:
    (model / "model.safetensors").write_text("version https://git-lfs.example/spec/v1\noid sha256:00\n")
    assert "git lfs pull" in refusal(model)


def test_a_missing_shard_is_named(model: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "the first is model-2.safetensors" in refusal(model)
    (model / "model-2.safetensors").write_bytes(safetensors())
    check_folder(model)


@pytest.mark.parametrize("shard", ["../secret", "/etc/passwd", "a/b", "..", "", "a\\b"])
def test_an_index_that_leads_out_of_the_folder_is_refused(model: Path, shard: str) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    assert "names a file outside of the folder" in refusal(model)


@pytest.mark.parametrize("index", [{}, [], {"weight_map": []}, {"weight_map": {"a": 7}}])
def test_an_index_without_a_map_is_refused(model: Path, index: object) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "has no `weight_map`" in refusal(model)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "extra.txt"])
def test_a_link_out_of_the_folder_is_refused_by_name(model: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("{}")
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(tmp_path / "secret")
    assert f"{name} is a link to a place outside" in refusal(model)


def test_a_link_to_nothing_is_refused_by_name(model: Path) -> None:
    (model / "a.json").symlink_to(model / "b.json")
    assert "a.json is a link to nothing" in refusal(model)


def test_a_snapshot_of_the_hubs_cache_may_link_to_its_own_blobs_only(model: Path, tmp_path: Path) -> None:
    repo = tmp_path / "models--owner--name"
    snapshot = repo / "snapshots" / ("0123456789" * 4)
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    for number, file in enumerate(sorted(model.iterdir())):
        file.rename(repo / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    check_folder(snapshot)
    other = tmp_path / "models--owner--other" / "blobs"
    other.mkdir(parents=True)
    (other / "0").write_text("{}")
    (snapshot / "more.json").symlink_to(other / "0")
    assert "more.json is a link to a place outside" in refusal(snapshot)


def test_a_pipe_in_the_folder_is_not_opened(model: Path) -> None:
    (model / "model.safetensors").unlink()
    os.mkfifo(model / "model.safetensors")
    assert "no .safetensors file" in refusal(model)


def test_a_file_that_can_not_be_read_is_named_without_its_path(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    assert refusal(model).endswith("cannot read config.json: Permission denied")
