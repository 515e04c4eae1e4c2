import pytest

from mlxsup.protocol.errors import RpcError
from mlxsup.supervisor.models.fetcher.hub_files import choose_files


def test_weights_settings_tokenizer_and_template_are_pulled_and_nothing_else() -> None:
    wanted = {
        *("config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json"),
        *(
            "tokenizer.json",
            "tokenizer.model",
            "merges.txt",
            "vocab.txt",
            "chat_template.jinja",
            "qwen.tiktoken",
            "modules.json",
            "1_Pooling/config.json",
        ),
    }
    unwanted = {
        *("pytorch_model.bin", "model.pt", "modeling_x.py", "README.md", ".gitattributes", "model.gguf"),
        *(
            "onnx/model.safetensors",
            "original/config.json",
            "consolidated.safetensors",
            "LICENSE",
            "notes.txt",
        ),
        *("a\nb.json", "../config.json", "training_args.bin", "run.sh", "config.json.py"),
    }
    sizes = dict.fromkeys(wanted | unwanted, 7)
    assert choose_files(sizes) == dict.fromkeys(wanted, 7)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["model.safetensors"], "no config.json"),
        (["config.json", "pytorch_model.bin"], "pickles"),
        (["config.json", "model.gguf"], "GGUF"),
        (["config.json", "onnx/model.safetensors"], "no .safetensors"),
    ],
)
def test_a_repository_that_mlx_can_not_load_is_refused_before_the_download(
    names: list[str], reason: str
) -> None:
    with pytest.raises(RpcError, match=reason) as caught:
        choose_files(dict.fromkeys(names, 1))
    assert caught.value.message.startswith("cannot pull the model: ")
