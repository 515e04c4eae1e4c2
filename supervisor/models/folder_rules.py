"""What a model folder must and must not say, and the facts that its configuration tells. Pure.

Every rule raises ValueError with a sentence that names the file and says what to do.
"""

import re
from collections.abc import Collection, Iterator

import msgspec

Json = dict[str, object]

# Each makes a loader import Python code from the model's folder.
_CODE_KEYS = frozenset({"auto_map", "model_file"})
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".npz")
_MODEL_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
# JSON files that are data: their keys are tokens or tensors, not settings.
_NOT_SETTINGS = frozenset({"tokenizer.json", "vocab.json", "added_tokens.json", "tekken.json", "mlxsup.json"})
_INDEX = ".safetensors.index.json"
# Any one of these sets of files is a tokenizer.
_TOKENIZERS = (
    {"tokenizer.json"},
    {"tokenizer.model"},
    {"vocab.json", "merges.txt"},
    {"tekken.json"},
    {"spiece.model"},
    {"vocab.txt"},
)


class Quantization(msgspec.Struct, frozen=True):
    """How most of the weights are packed; `group_size` weights share a scale, None if it isn't told."""

    bits: int
    group_size: int | None


def is_settings(name: str) -> bool:
    return name.endswith(".json") and name not in _NOT_SETTINGS and not name.endswith(_INDEX)


def is_index(name: str) -> bool:
    return name.endswith(_INDEX)


def as_object(name: str, document: object) -> Json:
    if isinstance(document, dict):
        return document
    raise ValueError(f"cannot load the model: {name} is not a JSON object; pull or copy it again")


def refuse_code(name: str, document: object) -> None:
    """Refuse a configuration that makes a loader run the model's own code, however deep it says so."""
    for key in _keys(document):
        if key in _CODE_KEYS:
            raise ValueError(
                f"cannot load the model: {name} has `{key}`, which runs Python code that comes with the "
                "model; use a version of the model without its own code"
            )


def weight_files(names: Collection[str]) -> list[str]:
    """The safetensors files that a loader reads. `consolidated*` are a second copy in another layout."""
    tensors = sorted(n for n in names if n.endswith(".safetensors") and not n.startswith("consolidated"))
    if tensors:
        return tensors
    if pickles := sorted(name for name in names if name.endswith(_PICKLES)):
        raise ValueError(
            f"cannot load the model: its weights are pickles ({pickles[0][:100]}), which can run code; "
            "convert them to safetensors with mlx_lm.convert, or take a version of the model in safetensors"
        )
    if ggufs := sorted(name for name in names if name.endswith(".gguf")):
        raise ValueError(
            f"cannot load the model: its weights are in GGUF ({ggufs[0][:100]}); take a version in MLX's "
            "format"
        )
    raise ValueError(
        "cannot load the model: the folder holds no .safetensors file; is the download complete?"
    )


def check_tokenizer(names: Collection[str]) -> None:
    present = set(names)
    if any(files <= present for files in _TOKENIZERS) or any(name.endswith(".tiktoken") for name in names):
        return
    raise ValueError(
        "cannot load the model: the folder holds no tokenizer; put tokenizer.json (or tokenizer.model) of "
        "the original model beside config.json"
    )


def shards(name: str, document: object) -> list[str]:
    """The files that the index `name` names; each a plain name, which can't lead out of the folder."""
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise ValueError(f"cannot load the model: {name} has no `weight_map` from tensors to files")
    files = sorted({str(file) for file in weight_map.values()})
    for file in files:
        if "/" in file or "\\" in file or "\0" in file or file in ("", ".", ".."):
            raise ValueError(
                f"cannot load the model: {name} names a file outside of the folder: {file[:100]!r}"
            )
    return files


def model_type(config: Json) -> str:
    found = config.get("model_type")
    if not isinstance(found, str) or not _MODEL_TYPE.fullmatch(found):
        raise ValueError(
            "cannot load the model: config.json has no usable `model_type`; is this a model's folder?"
        )
    return found


def architectures(config: Json) -> tuple[str, ...]:
    found = config.get("architectures")
    return tuple(str(name) for name in found) if isinstance(found, list) else ()


def context_tokens(config: Json) -> int | None:
    """The longest context that the model was made for; of a model that also sees, its text part's."""
    return next((n for part in _parts(config) if (n := _positive(part.get("max_position_embeddings")))), None)


def quantization(config: Json) -> Quantization | None:
    for part in _parts(config):
        for key in ("quantization", "quantization_config"):
            found = part.get(key)
            if isinstance(found, dict) and (bits := _positive(found.get("bits"))):
                return Quantization(bits=bits, group_size=_positive(found.get("group_size")))
    return None


def _parts(config: Json) -> Iterator[Json]:
    yield config
    if isinstance(text := config.get("text_config"), dict):
        yield text


def _positive(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _keys(document: object) -> Iterator[str]:
    # A loop rather than recursion: the document's depth is the model's choice.
    waiting = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
