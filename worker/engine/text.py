"""The engine for text models: requests into sequences of a batch, and chosen tokens into text."""

import math
import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import Self

import mlx.nn as nn
import msgspec
from msgspec.structs import replace

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.self_test import Feature, SelfTestResult
from mlxsup.protocol.worker_link import Generate, Load, Loaded, Tune
from mlxsup.worker.engine import loading
from mlxsup.worker.engine.adapters.adapters import Adapters
from mlxsup.worker.engine.batch import Batch
from mlxsup.worker.engine.codec import ShowContent, TextCodec
from mlxsup.worker.engine.draft import DraftModel, load_draft
from mlxsup.worker.engine.embedding.trunk import find_trunk
from mlxsup.worker.engine.features import ABLE, refuse_unsupported
from mlxsup.worker.engine.grammar.grammars import Grammars
from mlxsup.worker.engine.interface import Emission, IsWanted, Lease, Prepared, ReportLoad
from mlxsup.worker.engine.lookup import Lookup
from mlxsup.worker.engine.member import Choice, Member
from mlxsup.worker.engine.outputs.choice import chosen_tools, has_room_to_think
from mlxsup.worker.engine.outputs.open import open_output
from mlxsup.worker.engine.pace import Pace
from mlxsup.worker.engine.parking import Parking
from mlxsup.worker.engine.prefixes import opening as prefixes
from mlxsup.worker.engine.quantised import CacheMaker
from mlxsup.worker.engine.sampling import make_logits_processors, make_sampler
from mlxsup.worker.engine.selftest.compare import tolerance
from mlxsup.worker.engine.selftest.golden import golden_prompts
from mlxsup.worker.engine.selftest.rig import Rig
from mlxsup.worker.engine.selftest.selftest import SelfTest
from mlxsup.worker.engine.sequence import Sequence
from mlxsup.worker.engine.vision.sight import Sight
from mlxsup.worker.engine.widths import Guesser, Widths

# No token of a usual vocabulary stands for more characters; it only saves tokenising what can't fit.
CHARS_PER_TOKEN_MAX = 128


class _Running(msgspec.Struct):
    """A request in the batch."""

    member: Member
    sequence: Sequence

    @property
    def cached_tokens(self) -> int:
        """Of its prompt, which were not computed for it."""
        return min(self.member.taken, self.member.prompt_tokens)


class TextEngine:
    able = ABLE["text"]
    read_model = staticmethod(loading.read_text_model)

    def __init__(
        self,
        model: nn.Module,
        codec: TextCodec,
        loaded: Loaded,
        order: Load,
        draft: DraftModel | None,
    ) -> None:
        self.loaded = loaded
        self._model = model
        self.codec = codec
        self._adapters = Adapters(model, order.adapters, order.adapters_bytes_max)
        self.trunk = find_trunk(model, self._adapters.routes)
        self._cache_keys = prefixes.cache_keys(order)
        # What is kept of beginnings has the form of plain caches.
        keeps = order if order.kv_bits is None else replace(order, prefix_bytes_max=0, prefix_folder=None)
        self._prefixes = prefixes.open_prefixes(keeps, model, loaded.kv_bytes_per_token)
        self._widths = Widths()
        self._batch = Batch(
            model,
            sequences_max=order.batch_sequences_max,
            chunk_tokens=order.prefill_chunk_tokens,
            target_s=order.prefill_target_s or math.inf,
            pace=Pace(order.prefill_tokens_per_s),
            prefixes=self._prefixes,
            widths=self._widths,
            routes=self._adapters.routes,
        )
        self._draft = draft
        self._grammars = Grammars(codec.vocabulary, codec.tool_markers, order.grammar_compile_s)
        self._looks_up = order.lookup
        self._cache_maker = CacheMaker(model, order.kv_bits)
        self._running: dict[int, _Running] = {}
        self._parking: Parking[Member] = Parking(order.parked_bytes_max)
        self._order = order
        self._self_test: SelfTest | None = None
        self._off: set[Feature] = set()
        self._switch_off(order.switched_off)

    @classmethod
    def load(cls, order: Load, report: ReportLoad) -> Self:
        started_s = time.monotonic()
        folder = Path(order.model_path)
        model, config = loading.load_weights(folder, order.float32, report, cls.read_model)
        report("tokenizer", 0, 1)
        codec = TextCodec(loading.load_codec_tokenizer(folder, config))
        report("tokenizer", 1, 1)
        # It holds the interpreter for half a second: now, and not while streams run.
        threading.Thread(target=codec.vocabulary.build, name="vocabulary", daemon=True).start()
        loading.warm_up(model, report)
        loaded = Loaded(
            model_type=str(config.get("model_type", "")),
            context_tokens=loading.context_tokens(config, order.context_tokens_max),
            weights_bytes=loading.parameter_bytes(model),
            vocabulary_tokens=loading.vocabulary_tokens(config),
            load_s=time.monotonic() - started_s,
            kv_bytes_per_token=loading.kv_bytes_per_token(model, CacheMaker(model, order.kv_bits)),
        )
        draft = None
        if order.draft_path is not None and "speculation" not in order.switched_off:
            draft = load_draft(Path(order.draft_path), codec, order.float32, report)
        return cls(model, codec, loaded, order, draft)

    def prepare(self, request: Generate) -> Prepared:
        refuse_unsupported(request, self.able)
        return self._checked(request, self._prompt_tokens(request))

    def _checked(self, request: Generate, tokens: list[int], sight: Sight | None = None) -> Prepared:
        context = self.loaded.context_tokens
        if not tokens:
            raise RpcError(
                ErrorKind.INVALID_PARAMS, "the prompt has no tokens: send some text", path="$.prompt"
            )
        if len(tokens) >= context:
            raise too_long(f"{len(tokens)} tokens", context)
        vocabulary = self.loaded.vocabulary_tokens
        _check_tokens(tokens, vocabulary, "$.prompt_tokens")
        _check_tokens(list(request.sampling.logit_bias), vocabulary, "$.logit_bias")
        self._adapters.check(request.adapter)
        found = self._prefixes.find(self._cache_key(request.adapter, sight), tokens)
        answer_tokens_max = min(request.max_tokens, context - len(tokens))
        grammar = self._grammars.compile(request, answer_tokens_max)
        return Prepared(tokens, request, grammar, found, sight)

    def _cache_key(self, adapter: str | None, sight: Sight | None) -> str | None:
        key = self._cache_keys[adapter]
        return key if key is None or sight is None else f"{key} {sight.digest}"

    def _prompt_tokens(self, request: Generate) -> list[int]:
        if request.prompt_tokens is not None:
            return request.prompt_tokens
        return self.codec.encode(self._text(request), special=request.messages is None)

    def _text(self, request: Generate) -> str:
        """Of the prompt."""
        tools = chosen_tools(request).shown
        context = self.loaded.context_tokens
        if request.messages is not None:
            text = self.codec.render_chat(
                request.messages,
                request.accepted_unix_s,
                tools=tools,
                thinks=has_room_to_think(request),
                show=self._show(),
            )
        else:
            text = request.prompt or ""
        if len(text) > context * CHARS_PER_TOKEN_MAX:
            raise too_long(f"{len(text)} characters", context)
        return text

    def _show(self) -> ShowContent | None:
        """How a template gets to see what messages hold, None: as text alone."""
        return None

    def submit(self, id: int, prepared: Prepared) -> Emission | None:
        request, prompt = prepared.request, prepared.prompt_tokens
        delivered = request.delivered_tokens
        answer_tokens_max = min(request.max_tokens, self.loaded.context_tokens - len(prompt))
        outputs = open_output(request, self.codec, prompt)
        sequence = Sequence(id, request, self.codec, outputs, answer_tokens_max - len(delivered))
        only = sequence.replay(delivered)
        if only is not None:
            return only
        in_use = {running.member.adapter for running in self._running.values()}
        self._adapters.need(request.adapter, in_use)
        if prepared.found is not None:
            self._prefixes.admit(prepared.found)
        member = self._member(id, prepared, answer_tokens_max)
        self._enter(member)
        self._running[id] = _Running(member, sequence)
        return None

    def _enter(self, member: Member) -> None:
        self._batch.add(member)

    def _member(self, id: int, prepared: Prepared, answer_tokens_max: int) -> Member:
        """Of what was kept when it gave way, if that is the beginning of it."""
        request, prompt = prepared.request, prepared.prompt_tokens
        tokens = prompt + request.delivered_tokens
        parked = self._parking.take(id)
        if parked is not None and parked.tokens[: parked.cached] == tokens[: parked.cached]:
            cached, caches = parked.cached, parked.caches
            chosen, chances = (parked.chosen, parked.chances) if cached == len(tokens) else (None, None)
        else:
            cached, caches, chosen, chances = 0, self._cache_maker.make(), None, None
        grammar = prepared.grammar
        return Member(
            id=id,
            urgency=request.urgency,
            reads_first=request.reads_first,
            tokens=tokens,
            prompt_tokens=len(prompt),
            tokens_max=len(prompt) + answer_tokens_max,
            sampler=make_sampler(request.sampling, self.loaded.vocabulary_tokens),
            processors=make_logits_processors(request.sampling, len(prompt)),
            constraint=None if grammar is None else grammar.start(request.delivered_tokens),
            guesser=self._guesser(),
            logprobs=request.logprobs,
            adapter=request.adapter,
            sight=prepared.sight,
            cache_key=self._cache_key(request.adapter, prepared.sight),
            is_lasting=request.messages is not None,
            taken=cached,
            cached=cached,
            caches=caches,
            chosen=chosen,
            chances=chances,
        )

    def _guesser(self) -> Guesser | None:
        if "speculation" in self._off:
            return None
        if self._draft is not None:
            return self._draft.guesser()
        return Lookup() if self._looks_up else None

    @property
    def prefill_tokens(self) -> int:
        return self._batch.prefill_tokens

    def cancel(self, id: int) -> Emission:
        return self._take_out(id, goes_on=False)

    def give_way(self, id: int) -> Emission:
        return self._take_out(id, goes_on=True)

    def _take_out(self, id: int, *, goes_on: bool) -> Emission:
        running = self._running.pop(id)
        self._batch.remove([running.member], keeps_caches=goes_on)
        if goes_on and running.member.cached:
            self._parking.put(running.member)
        return _with_cached(running, running.sequence.cut_off())

    def forget(self, id: int) -> None:
        self._parking.drop(id)

    def share(self, lease: Lease) -> None:
        self._batch.lease = lease

    def tune(self, order: Tune) -> None:
        if order.prefill_chunk_tokens is not None:
            self._batch.chunk_tokens = order.prefill_chunk_tokens
        if order.batch_sequences_max is not None and "batch" not in self._off:
            self._batch.sequences_max = order.batch_sequences_max
        self._switch_off(order.switched_off)

    def step_self_test(self, is_wanted: IsWanted) -> SelfTestResult | None:
        if self._self_test is None:
            self._self_test = SelfTest(self._rig(), self._off)
        result = self._self_test.step(is_wanted)
        if result is not None:
            self._self_test = None
            self.loaded = replace(self.loaded, self_test=result)
            self._switch_off(result.switched_off)
        return result

    def _rig(self) -> Rig:
        order = self._order
        return Rig(
            model=self._model,
            routes=self._adapters.routes,
            maker=self._cache_maker,
            prompts=golden_prompts(
                lambda text: self.codec.encode(text, special=True), self.loaded.context_tokens
            ),
            vocabulary_tokens=self.loaded.vocabulary_tokens,
            bytes_per_token=self.loaded.kv_bytes_per_token,
            sequences_max=order.batch_sequences_max,
            keeps_prefixes=order.prefix_bytes_max > 0 and order.kv_bits is None,
            guesser=self._guesser,
            tolerance=tolerance(loading.float_types(self._model), order.kv_bits),
        )

    def _switch_off(self, features: Collection[Feature]) -> None:
        """From now on: what runs goes on behind what it was told, and nothing is used that was computed before."""
        found = set(features) - self._off
        if not found:
            return
        self._off |= found
        if "batch" in found:
            self._batch.sequences_max = 1
            self._cache_keys = {
                name: None if key is None else f"alone {key}" for name, key in self._cache_keys.items()
            }
        if "prefix_cache" in found:
            self._cache_keys = dict.fromkeys(self._cache_keys)
        if "speculation" in found:
            self._widths.stop()
        self._parking.clear()
        self._begin_again([running.member for running in self._running.values()])

    def _begin_again(self, members: list[Member]) -> None:
        """Each is read anew up to its last token, as when its worker has died."""
        for member in members:
            # Nothing is kept of what is thrown away.
            member.cache_key = None
        self._batch.remove(members)
        for member in members:
            member.cache_key = self._cache_key(member.adapter, member.sight)
            member.guesser = self._guesser()
            member.cached = member.taken = 0
            member.caches = self._cache_maker.make()
            member.chosen = member.chances = None
            self._enter(member)

    def step(self, is_wanted: IsWanted) -> list[Emission] | None:
        choices = self._batch.step(is_wanted)
        if choices is None:
            return None
        by_id: dict[int, list[Choice]] = {}
        for choice in choices:
            by_id.setdefault(choice.id, []).append(choice)
        emissions = []
        for id, chosen in by_id.items():
            running = self._running[id]
            emission = running.sequence.tell(chosen)
            if emission.finish is not None:
                emission = _with_cached(running, emission)
            emissions.append(emission)
        ended = [emission.id for emission in emissions if emission.finish is not None]
        failed = [
            id
            for id, running in self._running.items()
            if running.member.failure is not None and id not in ended
        ]
        emissions += [Emission(id, "", [], error=self._running[id].member.failure) for id in failed]
        if ended or failed:
            self._batch.remove([self._running.pop(id).member for id in ended + failed])
        return emissions

    def rest(self, is_wanted: IsWanted) -> None:
        self._batch.rest(is_wanted)

    def tokenize(self, text: str) -> list[int]:
        context = self.loaded.context_tokens
        if len(text) > context * CHARS_PER_TOKEN_MAX:
            raise RpcError(
                ErrorKind.LIMIT_EXCEEDED,
                f"the text is too long: {len(text)} characters are more than any prompt of this model; send less at once",
                path="$.text",
            )
        return self.codec.encode(text, special=False)

    def detokenize(self, tokens: list[int]) -> str:
        _check_tokens(tokens, self.loaded.vocabulary_tokens, "$.tokens")
        return self.codec.decode(tokens)


def _with_cached(running: _Running, emission: Emission) -> Emission:
    return replace(emission, cached_tokens=running.cached_tokens)


def too_long(what: str, context_tokens: int) -> RpcError:
    return RpcError(
        ErrorKind.LIMIT_EXCEEDED,
        f"the prompt is too long: {what} do not fit into the model's context of {context_tokens} tokens with room "
        "for an answer; shorten it",
    )


def _check_tokens(tokens: list[int], vocabulary_tokens: int, path: str) -> None:
    if tokens and max(tokens) >= vocabulary_tokens:
        bad = next(token for token in tokens if token >= vocabulary_tokens)
        raise RpcError(
            ErrorKind.INVALID_PARAMS,
            f"`{path}` has token {bad}, but the model's vocabulary has {vocabulary_tokens}",
            path=path,
        )
