"""A small vocabulary of its own: all bytes, and pieces that JSON texts are made of."""

import functools
import itertools

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from mlxsup.worker.engine.grammar.vocabulary import Vocabulary

_PIECES = [
    '{"',
    '":',
    '",',
    ' "',
    '"}',
    "[[",
    "]]",
    "}}",
    "true",
    "false",
    "null",
    "name",
    "the",
    "ab",
    "12",
    "\u00e9",
]


@functools.cache
def vocabulary() -> Vocabulary:
    """Its two end tokens and a third special one come last."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = {character: number for number, character in enumerate(alphabet)}
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    merges: list[tuple[str, str]] = []
    for piece in _PIECES:
        characters = level.pre_tokenize_str(piece)[0][0]
        for end in range(2, len(characters) + 1):
            pair = (characters[: end - 1], characters[end - 1])
            if "".join(pair) not in tokens:
                tokens["".join(pair)] = len(tokens)
                merges.append(pair)
    tokenizer = Tokenizer(BPE(vocab=tokens, merges=merges))
    tokenizer.pre_tokenizer = level
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True) for text in ("<end>", "<stop>", "<tool_call>")]
    )
    return Vocabulary(tokenizer, sorted(tokenizer.get_vocab()[text] for text in ("<end>", "<stop>"))[:2])


def text_of(tokens: list[int]) -> str:
    ends = vocabulary().end_tokens
    spoken = itertools.takewhile(lambda token: token not in ends, tokens)
    return vocabulary().tokens.decode_bytes(list(spoken)).decode()
