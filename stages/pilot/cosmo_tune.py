"""tune: try the engine's settings, and keep the quickest.

docs/generation.md has what is tried, and an example.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from cosmopedia.cli.output import Json, new_app, print_json
from cosmopedia.core.errors import ConfigError

app = new_app()


@app.command(epilog="Example: COSMO_COMPUTE=slurm-h100-vllm cosmo tune --minutes 60")
def tune(
    minutes: Annotated[float, typer.Option(min=0.1, help="GPU minutes at most; on a CPU, minutes.")] = 30.0,
    requests: Annotated[int | None, typer.Option(min=1, help="Per trial; default: the pilot's, at most 512.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Per completion; default: max_new_tokens.")] = None,
    other_texts: Annotated[
        bool, typer.Option("--other-texts", help="Also try what changes texts: quantisation, speculation.")
    ] = False,
    keep: Annotated[bool, typer.Option(help="Write what wins into the compute file.")] = True,
    as_json: Json = False,
) -> None:
    """Try the settings of the compute file's engine on the pilot's own prompts, and write what wins into the file.

    Killed, it goes on where it was. Completions of the pilot's requests are kept in the store.
    """
    report = run(minutes, requests, tokens, other_texts, keep, (lambda _: None) if as_json else typer.echo)
    if as_json:
        print_json(report)
        return
    typer.echo("\n" + "\n".join(report["sentences"]))


def run(
    minutes: float, count: int | None, tokens: int | None, other_texts: bool, keep: bool, said: Any
) -> dict[str, Any]:
    """The search, and what came of it."""
    from cosmopedia.core.lineage import store_root
    from cosmopedia.core.rng import content_hash
    from cosmopedia.execution.compute import compute_path, load_compute
    from cosmopedia.execution.sending import refuse_to_spend
    from cosmopedia.execution.tuning.knobs import QUANTISATION, current, fillable, knobs, write
    from cosmopedia.execution.tuning.search import Journal, Search
    from cosmopedia.execution.tuning.trial import Trials
    from cosmopedia.generation.model import GenerationModel
    from cosmopedia.store.store import CompletionStore

    refuse_to_spend()
    path, serving, model = compute_path(), load_compute().serving, GenerationModel.read()
    tried = [knob for knob in knobs(serving) if other_texts or not knob.changes_text]
    sampling, pending, own = wanted(model, count, tokens)
    tried, too_large = fillable(tried, len(pending))
    for sentence in too_large:
        said(sentence)
    start = {knob.name: value for knob in tried if (value := current(serving, knob)) is not None}
    keys = content_hash(*(one.key for one in pending))
    what = content_hash(serving.model_dump_json(), model.identity, sampling.canonical, keys, str(tried), size=6)
    journal = Journal.read(store_root() / "tune" / f"{path.stem}-{what}.json")
    if journal.trials:
        said(f"{len(journal.trials)} trials of {journal.minutes:.1f} minutes were made before; they are not repeated")
    with CompletionStore() as store:

        def keep_new(batch: list[Any]) -> None:
            store.append([one for one in batch if one.key in own and one.key not in store])

        trials = Trials(model, serving, sampling, pending, keep_new, journal.note)
        texts = {knob.name for knob in tried if knob.changes_text}

        def measure(settings: Any, left: float) -> Any:
            return trials(settings, left, any(settings.get(name) != start.get(name) for name in texts))

        search = Search(journal, measure, minutes, said)
        best = search.best(tried, start)
    chosen = {name: value for name, value in best.items() if value != start.get(name)}
    written = write(path, serving, {k: v for k, v in chosen.items() if k != QUANTISATION}) if keep else {}
    rates = search.rate(start), search.rate(best)
    return {
        "compute": str(path),
        "trials": [vars(trial) for trial in journal.trials],
        "minutes": journal.minutes,
        "tokens_per_second": {"before": rates[0], "after": rates[1]},
        "chosen": chosen,
        "written": written,
        "sentences": sentences(path, chosen, written, rates, serving.gpus, model.identity, texts),
    }


def wanted(model: Any, count: int | None, tokens: int | None) -> tuple[Any, list[Any], set[str]]:
    """Sampling, requests, and the keys of those that the pilot and generate make too.

    More requests than the pilot has prompts are further samples of them.
    """
    from cosmopedia.generation.complete import PromptRequests
    from cosmopedia.generation.forms import samplings
    from cosmopedia.generation.requests import PendingRequest, completion_key
    from cosmopedia.tables.parquet import tables_in
    from stages.pilot.__main__ import PROMPTS, settings
    from stages.pilot.prompt_draw import draw_prompts

    params, generation, *_ = settings()
    limit = generation.sampling.max_new_tokens
    sampling = generation.sampling.model_copy(update={"max_new_tokens": min(tokens or limit, limit)})
    if sampling.max_new_tokens >= model.max_length:
        raise ConfigError(f"--tokens {sampling.max_new_tokens} leaves no room in generator.max_length; take fewer")
    drawn = draw_prompts(tables_in(PROMPTS), params.seed, params.per_cell)
    count = count or min(len(drawn), 512)
    samples = -(-count // len(drawn))
    own = samplings(generation.forms, sampling)
    prompts = [(one.prompt_id, one.prompt, own.get(one.style)) for one in drawn]
    made = sorted(
        PromptRequests(prompts, model, generation.seed, samples), key=lambda one: (one.sample_index, one.seed)
    )
    pending = [PendingRequest(one, completion_key(one, model.identity, sampling)) for one in made[:count]]
    whole = sampling.max_new_tokens == limit
    return sampling, pending, {one.key for one in pending if whole and one.request.sample_index == 0}


def sentences(
    path: Path, chosen: Any, written: Any, rates: tuple[float, float], gpus: int, identity: str, texts: set[str]
) -> list[str]:
    """What came of it, for people."""
    from cosmopedia.execution.budget import read_rate
    from cosmopedia.execution.tuning.knobs import QUANTISATION

    before, after = rates
    if not before:
        return [f"{path}: its own settings could not be measured, so nothing is changed; read the trials above"]
    if not chosen:
        return [f"{path} stays as it is: nothing was 3% faster than its {before:,.1f} tokens/s"]
    unit = "GPU hours" if gpus else "hours"
    hours = [1e9 / rate / 3600 for rate in rates]
    lines = [
        f"{', '.join(f'{name} {value}' for name, value in chosen.items())}: {before:,.1f} -> {after:,.1f} tokens/s"
        f" ({after / before - 1:+.0%}); a billion tokens take {hours[1]:,.0f} {unit} instead of {hours[0]:,.0f}"
    ]
    lines.append(f"written to {path}: {', '.join(written)}" if written else f"{path} was not changed")
    if changed := sorted(set(chosen) & texts):
        lines.append(f"{', '.join(changed)} may change texts: what is in the store stays, and new completions differ")
    if QUANTISATION in chosen:
        lines.append(
            "quantisation is part of a completion's key and no setting of the compute file: set generator.quantisation"
            f" to {chosen[QUANTISATION]} in the profile, and all completions are made anew"
        )
    if (rate := read_rate(identity)) is not None:
        known = f"{rate.tokens_per_second:,.0f} tokens/s of {rate.measured[:10]}"
        lines.append(f"forecasts use the {known} until the next run measures anew")
    return lines
