"""The tokenizer of a GGUF as Hugging Face files. Pure, but for the library that builds it."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mlxsup.worker.convert.config import Json, special_tokens
from mlxsup.worker.convert.metadata import Metadata, RefusedError

# GGUF's token types that matter: 3 controls the model and is never text, 4 was added to the vocabulary as
# text.
_CONTROL, _USER_DEFINED = 3, 4


def build_tokenizer(metadata: Metadata) -> Tokenizer:
    """Byte-level BPE as SmolLM2 has it: digits one by one, no space in front, no tokens around a text.

    Raises:
        RefusedError: another kind of tokenizer, or lists that don't fit together.
    """
    model, splitting = metadata.text("tokenizer.ggml.model"), metadata.text("tokenizer.ggml.pre")
    if (model, splitting) != ("gpt2", "smollm"):
        raise RefusedError(
            f"cannot convert: the tokenizer {model!r} that splits words as {splitting!r}; 'gpt2' as "
            "'smollm' is known"
        )
    if metadata.flag("tokenizer.ggml.add_space_prefix", default=False):
        raise RefusedError("cannot convert: a tokenizer that puts a space in front of a text")
    if metadata.flag("tokenizer.ggml.add_bos_token", default=False):
        raise RefusedError("cannot convert: a tokenizer that begins every text with a token of its own")
    tokens, types = metadata.texts("tokenizer.ggml.tokens"), metadata.integers("tokenizer.ggml.token_type")
    if len(tokens) != len(types) or len(set(tokens)) != len(tokens):
        raise RefusedError("cannot convert: the tokens and their types don't fit together")
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: number for number, token in enumerate(tokens)},
            merges=_merges(metadata, set(tokens)),
            fuse_unk=False,
            byte_fallback=False,
        )
    )
    # Digits go first: the byte-level expression would take a whole number as one word.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    typed = list(zip(tokens, types, strict=True))
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token, kind in typed if kind == _CONTROL]
    )
    tokenizer.add_tokens(
        [AddedToken(token, special=False, normalized=False) for token, kind in typed if kind == _USER_DEFINED]
    )
    return tokenizer


def tokenizer_config(metadata: Metadata) -> Json:
    """The tokenizer_config.json: which tokens begin, end and pad, and how long a text may be."""
    tokens = metadata.texts("tokenizer.ggml.tokens")
    config: Json = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": metadata.integer("llama.context_length"),
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
    }
    numbers = special_tokens(metadata)
    if "tokenizer.ggml.unknown_token_id" in metadata:
        numbers["unk_token_id"] = metadata.integer("tokenizer.ggml.unknown_token_id")
    for name, number in numbers.items():
        if not isinstance(number, int) or number >= len(tokens):
            raise RefusedError(f"cannot convert: {name} is {number}, outside of the vocabulary")
        config[name.removesuffix("_id")] = tokens[number]
    return config


def _merges(metadata: Metadata, vocabulary: set[str]) -> list[tuple[str, str]]:
    merges: list[tuple[str, str]] = []
    for merge in metadata.texts("tokenizer.ggml.merges"):
        left, space, right = merge.partition(" ")
        if not space or not {left, right, left + right} <= vocabulary:
            raise RefusedError("cannot convert: a merge of the tokenizer names what isn't in its vocabulary")
        merges.append((left, right))
    return merges
