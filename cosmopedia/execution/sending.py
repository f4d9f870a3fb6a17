"""Sending what the store lacks: the forecast, the servers, the dispatcher, the record.

In: what `cosmopedia.generation.complete` did not find in the store, and the compute file. Out: completions in the
store; counts, failures, figures and throughput in the run. Servers start only if something is missing, and only when
the forecast is within the budget.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cosmopedia.core.errors import ConfigError
from cosmopedia.execution.budget import NO_BUDGET, Budget, Forecast, forecast, refuse, spent, write_rate
from cosmopedia.execution.compute import Compute, ExternalServing, Serving, load_compute
from cosmopedia.execution.progress import Progress
from cosmopedia.execution.spending import Ledger
from cosmopedia.generation.complete import CACHED, SAMPLED, CompletionRun, LookUp
from cosmopedia.generation.model import GenerationModel


@dataclass(frozen=True)
class Send:
    """Completes what is missing through the servers of the compute file.

    With `track`, MLflow records the run; with `keep`, servers that took long to start may wait for the next stage.
    Without `texts` short answers are asked for (a label, Yes or No), whose rate is kept from the forecasts of texts.
    Raises `ConfigError` when the forecast is above the budget or $COSMO_SEND is "never", `ClusterError` when servers
    or too many requests fail, and `KeyboardInterrupt` after SIGINT or SIGTERM.
    """

    budget: Budget = NO_BUDGET
    track: bool = False
    keep: bool = True
    texts: bool = True

    def __call__(self, run: CompletionRun, lookup: LookUp) -> None:
        from cosmopedia.execution.servers import release

        compute = load_compute()
        serving = compute.serving
        plan = forecast_of(lookup, compute)
        if run.total:
            long = f"; {len(lookup.too_long)} prompts too long for the model" if lookup.too_long else ""
            print(f"{run.stage}: {plan.sentence()}{long}", flush=True)
        ledger = Ledger(run.stage, lookup.keys.digest)
        run.figures = {"forecast": plan.metrics(), "spent": ledger.total().figures()}
        if lookup.missing:
            refuse_to_send(run.stage, lookup)
            refuse(plan, self.budget, ledger.total().money or 0.0)
            lookup.store.check_writable()
            _send(run, lookup, plan, serving, self, ledger)
        elif not self.keep:
            release(run.stage, lookup.model, serving)


def refuse_to_send(stage: str, lookup: LookUp) -> None:
    """`ConfigError` where $COSMO_SEND is "never": a person's word that nothing is to be spent now."""
    missing = f"{lookup.missing} of {len(lookup.states)} completions for {stage} are in no store or cache"
    refuse_to_spend(f"{missing}, and $COSMO_SEND is never: nothing was sent. Unset it to generate them")


def refuse_to_spend(sentence: str = "$COSMO_SEND is never: nothing was sent. Unset it to use a model") -> None:
    """`ConfigError` with a sentence where $COSMO_SEND is "never", or another one where it is anything else."""
    answer = os.environ.get("COSMO_SEND", "")
    if answer == "never":
        raise ConfigError(sentence)
    if answer:
        raise ConfigError(f"$COSMO_SEND is {answer!r}; set it to never, or unset it")


def forecast_of(lookup: LookUp, compute: Compute) -> Forecast:
    """What it will cost to complete what is missing."""
    mean = lookup.mean_tokens(SAMPLED // 8)
    cached = lookup.states.count(CACHED)
    limit, identity = lookup.sampling.max_new_tokens, lookup.model.identity
    prompts, price = lookup.prompt_tokens(), compute.price_per_gpu_hour
    by_token = compute.serving.token_price if isinstance(compute.serving, ExternalServing) else None
    return forecast(lookup.missing, cached, mean, limit, identity, compute.serving, prompts, price, by_token)


def _send(run: CompletionRun, lookup: LookUp, plan: Forecast, serving: Serving, how: Send, ledger: Ledger) -> None:
    """Start the servers, send the requests, end the servers; the store and the run's counts have the results."""
    from cosmopedia.execution.client.charges import Wallet
    from cosmopedia.execution.client.dispatcher import Dispatcher
    from cosmopedia.execution.client.endpoints import Pool
    from cosmopedia.execution.client.http import Identity
    from cosmopedia.execution.servers import fleet
    from cosmopedia.execution.status import StatusWriter

    model = lookup.model
    before = ledger.total().money or 0.0
    wallet = Wallet(how.budget.max_money, before)
    with _mlflow(run.stage, model, how.track) as record, fleet(run.stage, model, serving, how.keep) as servers:
        pool = Pool(
            servers.members,
            serving,
            lookup.sampling,
            Identity(model.model, model.revision, model.max_length, model.loaded_from, model.system_prompt),
            wallet=wallet,
        )

        def stop() -> BaseException | None:
            now = time.monotonic()
            servers.demand(lookup.missing - dispatcher.done, lambda url: not pool.uses(url))
            gpu_seconds = pool.gpu_seconds(now)
            wallet.elsewhere = before + gpu_seconds / 3600 * (plan.price or 0.0)
            return servers.tend() or spent(how.budget, gpu_seconds, dispatcher.outcome.tokens, wallet.elsewhere)

        dispatcher = Dispatcher(
            run.stage,
            pool,
            serving,
            lookup.reader,
            commit=run.store.append,
            stop=stop,
            expecting=servers.expecting,
            before=run.cached,
            failed_before=run.reasons,
        )
        with Progress(run.stage, lookup.missing, "completions") as progress:
            status = StatusWriter(run.stage, dispatcher, run.total, run.cached, plan, progress, record, ledger)
            try:
                with status:
                    dispatcher.run(lookup.pending())
            finally:
                outcome = dispatcher.outcome
                run.new, run.tokens_new, run.reasons = outcome.new, outcome.tokens, dispatcher.reasons
                run.figures, run.throughput = status.figures(), status.throughput()
                run.failures.update((failure.key, failure) for failure in outcome.failures)
                seconds = pool.instance_seconds(time.monotonic())
                if how.texts:
                    write_rate(model.identity, outcome.new, outcome.tokens, seconds, serving.gpus, status.utilisation)


@contextlib.contextmanager
def _mlflow(stage: str, model: GenerationModel, track: bool) -> Iterator[Any]:
    """An MLflow run, or None."""
    if not track:
        yield None
        return
    from cosmopedia.execution.mlflow_run import Run

    with Run(stage, {"model": model.model, "model_revision": model.revision}) as record:
        yield record
