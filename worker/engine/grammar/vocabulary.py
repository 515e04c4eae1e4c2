"""The model's tokens, as a grammar needs them."""

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from llguidance import LLTokenizer

from mlxsup.protocol.errors import ErrorKind, RpcError


class Vocabulary:
    """`backend` is a tokenizer of Hugging Face's `tokenizers`, or None for a model that has another kind."""

    def __init__(self, backend: Any, end_tokens: Sequence[int]) -> None:
        self._backend = backend
        self.end_tokens = tuple(end_tokens)

    @cached_property
    def tokens(self) -> LLTokenizer:
        """Made when it is first needed: it takes half a second.

        Raises:
            RpcError: UNSUPPORTED where that can't be.
        """
        if self._backend is None or not self.end_tokens:
            raise RpcError(
                ErrorKind.UNSUPPORTED,
                "`$.response_format` needs a model with a fast tokenizer and an end token, and this one has none",
                path="$.response_format",
            )
        return LLTokenizer(self._backend.to_str(), eos_token=list(self.end_tokens))

    @cached_property
    def _texts(self) -> list[bytes]:
        return [self.tokens.decode_bytes([token]) for token in range(self.tokens.vocab_size)]

    def build(self) -> None:
        """Have it ready before anybody needs it, if it can be had at all."""
        with suppress(RpcError):
            _ = self.tokens

    @cached_property
    def plain(self) -> list[int]:
        """All tokens of text, the shorter ones first."""
        texts = self._texts
        spoken = [
            token for token, text in enumerate(texts) if text and not self.tokens.is_special_token(token)
        ]
        return sorted(spoken, key=lambda token: (len(texts[token]), token))

    @cached_property
    def _by_text(self) -> dict[bytes, int]:
        found: dict[bytes, int] = {}
        for token in self.plain:
            found.setdefault(self._texts[token], token)
        return found

    def those_of(self, texts: Sequence[str]) -> list[int]:
        """The tokens that are exactly these texts, as far as there are any."""
        return [self._by_text[text.encode()] for text in texts if text.encode() in self._by_text]

    def is_special(self, text: str) -> int | None:
        """The one token that stands for all of that text and for nothing else."""
        tokens = self.tokens.tokenize_str(text, parse_special=True)
        return tokens[0] if len(tokens) == 1 and self.tokens.is_special_token(tokens[0]) else None
