"""What the methods about models do, whatever the transport: one function for each."""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec
import trio

from mlxsup.config.schema import Config
from mlxsup.protocol import service, worker_link
from mlxsup.protocol.self_test import SelfTestResult
from mlxsup.supervisor.models.pull import pull
from mlxsup.supervisor.models.store import Store
from mlxsup.supervisor.pool.attempt import OnProgress
from mlxsup.supervisor.pool.pool import Pool


class Caller(Protocol):
    """The call that a method answers, as far as the method needs it. `client` stands for whoever called."""

    @property
    def client(self) -> str: ...

    def progress(self, value: dict[str, Any]) -> None: ...

    def subscribe(self, topics: frozenset[str]) -> None: ...


Handler = Callable[[Any, Caller], Awaitable[Any]]


class ModelMethods:
    def __init__(self, config: Config, pool: Pool, store: Store) -> None:
        self._config = config
        self._pool = pool
        self._store = store
        self._pulling = trio.Semaphore(config.server.pulls_max)
        self.handlers: dict[str, Handler] = {
            "model/list": self._list,
            "model/load": self._load,
            "model/unload": self._unload,
            "model/recycle": self._recycle,
            "model/selftest": self._self_test,
            "model/breaker": self._breaker,
            "model/forgive": self._forgive,
            "model/pull": self._pull,
            "tokenize": self._tokenize,
            "detokenize": self._detokenize,
        }

    async def _list(self, _: service.NoParams, __: Caller) -> service.ModelList:
        return service.ModelList(models=await self._pool.list())

    async def _load(self, params: service.LoadParams, caller: Caller) -> service.ModelEntry:
        runner = self._pool.runner(params.model)
        await runner.load(
            pin=params.pin, options=params.options, forgive=params.forgive, on_progress=_report_load(caller)
        )
        return self._pool.entry(runner)

    async def _unload(self, params: service.UnloadParams, _: Caller) -> service.NoResult:
        await self._pool.runner(params.model).unload(force=params.force)
        return service.NoResult()

    async def _recycle(self, params: service.RecycleParams, caller: Caller) -> service.ModelEntry:
        runner = self._pool.runner(params.model)
        await runner.recycle(_report_load(caller))
        return self._pool.entry(runner)

    async def _self_test(self, params: service.SelfTestParams, caller: Caller) -> SelfTestResult:
        return await self._pool.runner(params.model).self_test(_report_load(caller))

    async def _breaker(self, params: service.BreakerParams, _: Caller) -> service.ModelEntry:
        runner = self._pool.runner(params.model)
        breaker = runner.gate.breaker
        actions = {"reset": breaker.reset, "force_open": breaker.force_open, "disable": breaker.disable}
        actions[params.action]()
        return self._pool.entry(runner)

    async def _forgive(self, params: service.ForgiveParams, _: Caller) -> service.ForgiveResult:
        return service.ForgiveResult(requests=self._pool.forgive(params.model))

    async def _pull(self, params: service.PullParams, caller: Caller) -> service.PullResult:
        configured = self._config.models.get(params.model)
        name = configured.source if configured is not None and configured.source else params.model
        async with self._pulling:
            pulled = await pull(
                name,
                store_root=self._store.root,
                on_progress=lambda progress: caller.progress(msgspec.to_builtins(progress)),
            )
        return service.PullResult(path=str(pulled.path), digest=pulled.digest)

    async def _tokenize(self, params: service.TokenizeParams, _: Caller) -> service.TokenizeResult:
        question = worker_link.Tokenize(text=params.text)
        runner = self._pool.runner(params.model)
        answer = await runner.call(worker_link.TOKENIZE, question, worker_link.Tokenized)
        return service.TokenizeResult(tokens=answer.tokens)

    async def _detokenize(self, params: service.DetokenizeParams, _: Caller) -> service.DetokenizeResult:
        question = worker_link.Detokenize(tokens=params.tokens)
        runner = self._pool.runner(params.model)
        answer = await runner.call(worker_link.DETOKENIZE, question, worker_link.Detokenized)
        return service.DetokenizeResult(text=answer.text)


def _report_load(caller: Caller) -> OnProgress:
    def report(progress: worker_link.LoadProgress) -> None:
        caller.progress(msgspec.to_builtins(progress))

    return report
