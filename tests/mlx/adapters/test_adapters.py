"""Adapters on a model with random weights: streams of several in one batch, read and dropped beside the base."""

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.llama import Model, ModelArgs
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.worker.engine.adapters.adapters import Adapters
from mlxsup.worker.engine.batch import Batch
from mlxsup.worker.engine.member import Member
from mlxsup.worker.engine.sampling import greedy

VOCABULARY = 97
ANSWER_TOKENS = 8
LORA = {"rank": 4, "scale": 8.0, "dropout": 0.0, "keys": ["self_attn.q_proj", "mlp.down_proj"]}


def make_model() -> nn.Module:
    mx.random.seed(7)
    args = ModelArgs(
        model_type="llama",
        hidden_size=64,
        num_hidden_layers=3,
        intermediate_size=96,
        num_attention_heads=4,
        rms_norm_eps=1e-5,
        vocab_size=VOCABULARY,
        num_key_value_heads=2,
    )
    model: nn.Module = Model(args)
    return model


def train(folder: Path, seed: int, parameters: dict[str, object] = LORA) -> Path:
    """What `mlx_lm.lora` leaves behind, with weights that make a difference."""
    model = make_model()
    model.freeze()
    linear_to_lora_layers(model, 2, parameters)
    mx.random.seed(seed)
    leaves: list[tuple[str, mx.array]] = tree_flatten(model.trainable_parameters())  # type: ignore[assignment]
    folder.mkdir()
    drawn = {name: mx.random.normal(leaf.shape) for name, leaf in leaves}
    mx.save_safetensors(str(folder / "adapters.safetensors"), drawn)
    (folder / "adapter_config.json").write_text(
        json.dumps({"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": parameters})
    )
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    return {name: str(train(tmp_path / name, seed)) for seed, name in enumerate(("german", "terse", "third"))}


def prompt(id: int) -> list[int]:
    return [(3 + 11 * id + 5 * at * at) % VOCABULARY for at in range(4 + id)]


def alone(id: int, folder: str | None) -> list[int]:
    """By mlx-lm, with its own adapter layers."""
    model = make_model()
    if folder is not None:
        load_adapters(model, folder)
    caches = make_prompt_cache(model)
    tokens = prompt(id)
    logits = model(mx.array([tokens]), cache=caches)[0, -1]
    answer: list[int] = []
    while len(answer) < ANSWER_TOKENS:
        answer += [int(token) for token in np.array(mx.argmax(logits, keepdims=True))]
        logits = model(mx.array([answer[-1:]]), cache=caches)[0, -1]
    return answer


def answers(model: nn.Module, adapters: Adapters, chosen: dict[int, str | None]) -> dict[int, list[int]]:
    batch = Batch(model, sequences_max=8, chunk_tokens=16, routes=adapters.routes)
    for id, name in chosen.items():
        adapters.need(name, set(chosen.values()))
        batch.add(
            Member(
                id=id,
                urgency=2,
                tokens=prompt(id),
                prompt_tokens=len(prompt(id)),
                tokens_max=1000,
                sampler=greedy,
                processors=[],
                caches=make_prompt_cache(model),
                adapter=name,
            )
        )
    found: dict[int, list[int]] = {id: [] for id in chosen}
    while any(len(tokens) < ANSWER_TOKENS for tokens in found.values()):
        for choice in batch.step(lambda: False) or []:
            found[choice.id].append(choice.token)
    return {id: tokens[:ANSWER_TOKENS] for id, tokens in found.items()}


def test_streams_with_different_adapters_and_none_share_a_batch_and_each_says_what_it_says_alone(
    folders: dict[str, str],
) -> None:
    model = make_model()
    chosen = {1: None, 2: "german", 3: "terse", 4: "german", 5: None}

    found = answers(model, Adapters(model, folders, 1 << 30), chosen)

    assert found == {id: alone(id, name and folders[name]) for id, name in chosen.items()}
    assert found[2] != alone(2, None)


def test_an_adapter_that_nobody_uses_makes_room_and_comes_back_the_same(folders: dict[str, str]) -> None:
    model = make_model()
    adapters = Adapters(model, folders, bytes_max=0)
    first = answers(model, adapters, {2: "german"})
    answers(model, adapters, {2: "terse"})

    assert adapters.resident == ["terse"]
    assert answers(model, adapters, {2: "german"}) == first == {2: alone(2, folders["german"])}
    assert answers(model, adapters, {2: None}) == {2: alone(2, None)}


def test_those_in_use_stay_whatever_the_bound(folders: dict[str, str]) -> None:
    adapters = Adapters(make_model(), folders, bytes_max=0)
    adapters.need("german", set())
    adapters.need("terse", {"german"})

    assert adapters.resident == ["german", "terse"]


def test_an_unknown_adapter_is_refused_with_the_names_of_those_there_are(folders: dict[str, str]) -> None:
    adapters = Adapters(make_model(), folders, 0)
    adapters.check(None)
    adapters.check("german")

    with pytest.raises(RpcError, match="no adapter `french`; it has `german`, `terse`, `third`") as raised:
        adapters.check("french")
    assert (raised.value.kind, raised.value.data.path) == (ErrorKind.INVALID_PARAMS, "$.adapter")


def break_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")


def make_dora(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(
        '{"fine_tune_type": "dora", "lora_parameters": {"scale": 1.0}}'
    )


def cut_weights(folder: Path) -> None:
    path = folder / "adapters.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def remove_weights(folder: Path) -> None:
    (folder / "adapters.safetensors").unlink()


def change_shape(folder: Path) -> None:
    path = str(folder / "adapters.safetensors")
    name = "model.layers.2.self_attn.q_proj"
    mx.save_safetensors(path, {f"{name}.lora_a": mx.zeros((63, 4)), f"{name}.lora_b": mx.zeros((4, 64))})


def name_no_layer(folder: Path) -> None:
    path = str(folder / "adapters.safetensors")
    mx.save_safetensors(
        path, {"model.nowhere.lora_a": mx.zeros((64, 4)), "model.nowhere.lora_b": mx.zeros((4, 64))}
    )


def leave_out_half(folder: Path) -> None:
    path = str(folder / "adapters.safetensors")
    mx.save_safetensors(path, {"model.layers.2.self_attn.q_proj.lora_a": mx.zeros((64, 4))})


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (break_config, ErrorKind.MODEL_LOAD_FAILED, "cannot read the adapter `german`"),
        (make_dora, ErrorKind.UNSUPPORTED, "of the kind `dora`"),
        (cut_weights, ErrorKind.MODEL_LOAD_FAILED, "cannot read the adapter `german`"),
        (remove_weights, ErrorKind.MODEL_LOAD_FAILED, "cannot read the adapter `german`"),
        (
            change_shape,
            ErrorKind.MODEL_LOAD_FAILED,
            "takes 64 inputs to 64 outputs, and the adapter 63 to 64",
        ),
        (name_no_layer, ErrorKind.MODEL_LOAD_FAILED, "`model.nowhere` is no layer of it"),
        (leave_out_half, ErrorKind.MODEL_LOAD_FAILED, "has no pair of"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_and_changes_nothing(
    folders: dict[str, str], spoil: object, kind: ErrorKind, words: str
) -> None:
    assert callable(spoil)
    spoil(Path(folders["german"]))
    model = make_model()
    adapters = Adapters(model, folders, 1 << 30)

    with pytest.raises(RpcError, match=words) as raised:
        adapters.need("german", set())

    assert (raised.value.kind, raised.value.data.path) == (kind, "$.adapter")
    assert str(Path(folders["german"]).parent) not in str(raised.value)
    assert adapters.resident == []
    assert answers(model, adapters, {2: None}) == {2: alone(2, None)}
