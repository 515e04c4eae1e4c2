"""From a request to the grammar of its answer."""

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.worker_link import Generate
from mlxsup.worker.engine.grammar.compiler import Compiler
from mlxsup.worker.engine.grammar.constraint import Grammar
from mlxsup.worker.engine.grammar.sources import Source, of_format, of_tools
from mlxsup.worker.engine.grammar.vocabulary import Vocabulary
from mlxsup.worker.engine.outputs.choice import chosen_tools
from mlxsup.worker.engine.outputs.dialect import ToolMarkers


class Grammars:
    """For the preparation thread. `markers` are what the model puts around calls, None: it knows no tools."""

    def __init__(self, vocabulary: Vocabulary, markers: ToolMarkers | None, deadline_s: float) -> None:
        self._vocabulary = vocabulary
        self._markers = markers
        self._compiler = Compiler(vocabulary, deadline_s)

    def compile(self, request: Generate, answer_tokens_max: int) -> Grammar | None:
        """None: the answer is free.

        Raises:
            RpcError: it is no grammar that can be kept, or its shortest text is longer than the answer may be.
        """
        source = self._source(request)
        if source is None:
            return None
        compiled = self._compiler.compile(source)
        if compiled.tokens_min > answer_tokens_max:
            raise RpcError(
                ErrorKind.INVALID_PARAMS,
                f"`$.max_tokens` leaves {answer_tokens_max} tokens, but the shortest answer that `{source.path}` allows has "
                f"{compiled.tokens_min}; raise it",
                path="$.max_tokens",
            )
        return compiled.bound

    def _source(self, request: Generate) -> Source | None:
        if request.format is not None:
            return of_format(request.format)
        choice = chosen_tools(request)
        if not choice.required:
            return None
        if self._markers is None or self._markers.style == "other":
            raise RpcError(
                ErrorKind.UNSUPPORTED,
                "`$.tool_choice` can't force a call of this model, whose calls are no JSON; use `auto`",
                path="$.tool_choice",
            )
        return of_tools(choice.allowed, self._markers, self._vocabulary)
