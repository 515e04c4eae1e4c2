"""The default model, pulled and converted the real way."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from mlxsup.supervisor.models.aliases import CONVERTER_VERSION
from mlxsup.supervisor.models.folder_check import check_folder
from mlxsup.supervisor.models.folder_rules import Quantization
from mlxsup.worker.convert import VERSION

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tokenizer(smollm: Path) -> Tokenizer:
    return Tokenizer.from_file(str(smollm / "tokenizer.json"))


def test_the_store_keeps_folders_of_the_current_converter() -> None:
    assert CONVERTER_VERSION == VERSION


def test_the_folder_passes_the_check_and_tells_its_facts(smollm: Path) -> None:
    facts = check_folder(smollm)
    assert (facts.model_type, facts.context_tokens) == ("llama", 8192)
    assert facts.quantization == Quantization(bits=4, group_size=32)
    assert 98_000_000 < facts.weights_bytes < 99_000_000


def test_only_the_embedding_has_eight_bits(smollm: Path) -> None:
    config = json.loads((smollm / "config.json").read_text())
    assert config["quantization"] == {
        "group_size": 32,
        "bits": 4,
        "model.embed_tokens": {"group_size": 32, "bits": 8},
    }


@pytest.mark.parametrize(
    "text",
    [
        "The quick brown fox, isn't it?  Two  spaces\tand\n\nlines.",
        " leading and trailing ",
        "Zażółć gęślą jaźń – Füße, naïveté",  # noqa: RUF001
        "Привет, мир! Γειά σου Κόσμε",  # noqa: RUF001
        "你好，世界。こんにちは世界 안녕하세요",  # noqa: RUF001
        "שלום עולם مرحبا بالعالم नमस्ते दुनिया",
        "🙂👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 \u00a0\u200b",
        "def f(x):\n    return x ** 2  # 3.14\n",
        "١٢٣ ४५६ Ⅷ ½ 2024-11-22",
        "",
    ],
)
def test_a_text_in_any_script_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_no_token_is_put_around_or_in_front_of_a_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("a").ids == [tokenizer.token_to_id("a")]
    assert tokenizer.encode(" a").ids == [tokenizer.token_to_id("Ġa")]


def test_digits_are_split_one_by_one(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("1234 56").tokens == ["1", "2", "3", "4", "Ġ", "5", "6"]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Hello world", ["Hello", "Ġworld"]),
        ("I'll don't", ["I", "'ll", "Ġdon", "'t"]),
        ("a1b22", ["a", "1", "b", "2", "2"]),
        ("in 2024", ["in", "Ġ", "2", "0", "2", "4"]),
        ("x  y", ["x", "Ġ", "Ġy"]),
        ("a\n\nb", ["a", "Ċ", "Ċ", "b"]),
        ("f(x)!?", ["f", "(", "x", ")!?"]),
    ],
)
def test_words_are_split_as_smollm2_splits_them(tokenizer: Tokenizer, text: str, pieces: list[str]) -> None:
    """Each digit alone, then the byte-level expression of GPT-2."""
    assert tokenizer.pre_tokenizer is not None
    assert [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)] == pieces


def test_special_tokens_are_one_token_each_and_end_a_turn(smollm: Path, tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode("<|im_start|>user\nHi<|im_end|>")
    assert (encoded.ids[0], encoded.ids[-1]) == (1, 2)
    assert tokenizer.decode(encoded.ids) == "user\nHi"
    config = json.loads((smollm / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert json.loads((smollm / "generation_config.json").read_text())["eos_token_id"] == 2


CHAT = """
import json, sys
import mlx_lm
model, tokenizer = mlx_lm.load(sys.argv[1])
prompt = tokenizer.apply_chat_template(
    [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True
)
text = mlx_lm.generate(model, tokenizer, prompt, max_tokens=8)
print(json.dumps({"prompt": tokenizer.decode(prompt), "text": text, "ends": sorted(tokenizer.eos_token_ids)}))
"""


def test_mlx_lm_loads_it_and_it_knows_the_capital_of_france(smollm: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", CHAT, str(smollm)], stdout=subprocess.PIPE, check=True, timeout=300
    )
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["prompt"].endswith(
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert said["ends"] == [2]
    assert "Paris" in said["text"]
