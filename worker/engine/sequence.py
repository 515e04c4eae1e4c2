"""What a client gets to see of one sequence: chosen tokens in, text, reasoning and tool calls out, and its end."""

from collections.abc import Sequence as Tokens

import mlx.core as mx

from mlxsup.protocol.generation import LOGPROB_MIN, FinishReason, TokenChance, TokenLogprob, ToolCall
from mlxsup.protocol.worker_link import Generate
from mlxsup.worker.engine.codec import TextCodec
from mlxsup.worker.engine.interface import Emission
from mlxsup.worker.engine.member import Chances, Choice
from mlxsup.worker.engine.outputs.stream import OutputStream, Piece
from mlxsup.worker.engine.stop_strings import StopStrings


class Sequence:
    """Nothing is sent twice: what an earlier worker showed of the delivered tokens' text shows again, and is left out.

    `tokens_left` are those that may come behind the delivered ones.
    """

    def __init__(
        self, id: int, request: Generate, codec: TextCodec, outputs: OutputStream | None, tokens_left: int
    ) -> None:
        self.id = id
        self._codec = codec
        self._stream = codec.stream()
        self._outputs = outputs
        self._stops = StopStrings(request.stop)
        self._tokens_left = tokens_left
        self._logprobs = request.logprobs
        self._has_called = False
        # Of what was delivered, still to be seen again.
        self._seen_chars = request.delivered_chars
        self._seen_reasoning_chars = request.delivered_reasoning_chars
        self._seen_tool_calls = request.delivered_tool_calls

    def replay(self, delivered: Tokens[int]) -> Emission | None:
        """Take in what an earlier worker chose; its only emission, if that completes it."""
        gained: list[Piece] = []
        for token in delivered:
            piece, stopped = self._gain(self._stream.add(token))
            gained.append(piece)
            if stopped:
                return self._emission(gained, [], [], FinishReason.STOP)
        if self._tokens_left <= 0:
            gained.append(self._rest())
            return self._emission(gained, [], [], FinishReason.LENGTH)
        # Bytes that it showed at its end as no character may be one now.
        self._drop_seen(gained)
        return None

    def tell(self, choices: Tokens[Choice]) -> Emission:
        """What these tokens give. Behind its end there is nothing."""
        gained: list[Piece] = []
        tokens: list[int] = []
        logprobs: list[TokenLogprob] = []
        finish = None
        for choice in choices:
            finish = self._tell(choice, gained, tokens)
            if choice.chances is not None and len(tokens) > len(logprobs):
                logprobs.append(self._logprob(choice.token, choice.chances))
            if finish is not None:
                break
        return self._emission(gained, tokens, logprobs, finish)

    def cut_off(self) -> Emission:
        """It ends before its end, with what is held back."""
        return self._emission([self._rest()], [], [], FinishReason.CANCELLED)

    def _tell(self, choice: Choice, gained: list[Piece], tokens: list[int]) -> FinishReason | None:
        self._tokens_left -= 1
        if choice.token in self._codec.eos_tokens:
            # The end token itself is neither text nor counted.
            gained.append(self._rest())
            return FinishReason.STOP
        tokens.append(choice.token)
        piece, stopped = self._gain(self._stream.add(choice.token))
        gained.append(piece)
        if stopped:
            return FinishReason.STOP
        if self._tokens_left == 0:
            gained.append(self._rest())
            return FinishReason.LENGTH
        return None

    def _gain(self, text: str) -> tuple[Piece, bool]:
        """What decoded text makes certain, and whether a stop string ends it."""
        piece = Piece(text) if self._outputs is None else self._outputs.add(text)
        return self._until_stop(piece)

    def _until_stop(self, piece: Piece) -> tuple[Piece, bool]:
        shown, stopped = self._stops.feed(piece.text)
        return Piece(shown, piece.reasoning, piece.tool_calls), stopped

    def _rest(self) -> Piece:
        """All that was held back."""
        first, stopped = self._gain(self._stream.flush())
        if stopped:
            return first
        last, stopped = self._until_stop(Piece("") if self._outputs is None else self._outputs.flush())
        end = "" if stopped else self._stops.flush()
        return _joined([first, last, Piece(end)])

    def _emission(
        self,
        gained: list[Piece],
        tokens: list[int],
        logprobs: list[TokenLogprob],
        finish: FinishReason | None,
    ) -> Emission:
        unseen = self._drop_seen(gained)
        if finish is FinishReason.STOP and self._has_called:
            finish = FinishReason.TOOL_CALLS
        return Emission(
            self.id,
            unseen.text,
            tokens,
            finish,
            reasoning=unseen.reasoning,
            tool_calls=unseen.tool_calls,
            logprobs=logprobs,
        )

    def _drop_seen(self, gained: list[Piece]) -> Piece:
        piece = _joined(gained)
        self._has_called = self._has_called or bool(piece.tool_calls)
        chars = min(self._seen_chars, len(piece.text))
        reasoning_chars = min(self._seen_reasoning_chars, len(piece.reasoning))
        calls = min(self._seen_tool_calls, len(piece.tool_calls))
        self._seen_chars -= chars
        self._seen_reasoning_chars -= reasoning_chars
        self._seen_tool_calls -= calls
        return Piece(piece.text[chars:], piece.reasoning[reasoning_chars:], piece.tool_calls[calls:])

    def _logprob(self, token: int, chances: Chances) -> TokenLogprob:
        top = zip(_values(chances.top_tokens), _values(chances.top), strict=True)
        return TokenLogprob(
            token=token,
            text=self._codec.decode([token]),
            logprob=_finite(_values(chances.chosen)[0]),
            top=[
                TokenChance(token=int(other), text=self._codec.decode([int(other)]), logprob=_finite(logprob))
                for other, logprob in top
            ],
        )


def _joined(pieces: list[Piece]) -> Piece:
    if len(pieces) == 1:
        return pieces[0]
    return Piece(
        "".join(piece.text for piece in pieces),
        "".join(piece.reasoning for piece in pieces),
        _calls(pieces),
    )


def _calls(pieces: list[Piece]) -> list[ToolCall]:
    return [call for piece in pieces for call in piece.tool_calls]


def _finite(logprob: float) -> float:
    """JSON has no infinity, and a grammar or a bias can have a token said that the model rules out."""
    return max(LOGPROB_MIN, logprob)


def _values(array: mx.array) -> list[float]:
    values: list[float] = array.tolist()  # type: ignore[assignment]
    return values
