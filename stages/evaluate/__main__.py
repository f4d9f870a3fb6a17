"""evaluate: each exported model scored on benchmarks in cloze form and on held-out documents, next to measured floors.

In: models/export/seed-<n>/, data/benchmarks/<task>.parquet (BENCHMARK), the held-out sets (profile: evaluate.heldout),
data/tokenize_corpus/ (token counts, for a floor).
Out: metrics/evaluate.json (scores of tasks, panels and held-out sets with standard errors and floors, means over
seeds; docs/evaluation.md has the keys), data/evaluate/seed-<n>.parquet (DETAIL, a row per item),
data/evaluate/heldout-seed-<n>.parquet (HELDOUT, a row per document), metrics/plots/evaluate.csv; for the earlier
checkpoints that train kept seed-<n>-step-<s>.parquet and heldout-seed-<n>-step-<s>.parquet.
Contract: the same models, items, documents and machine give the same scores. A seed's score is the mean over its
checkpoints. MLflow gets a run per seed and one with the means, once all outs are written: no server that is slow or
dead costs a score.
Run: python -m stages.evaluate
"""

from pathlib import Path

from cosmopedia.core.files import clear_folder, write_text
from cosmopedia.core.row_counts import write_metrics
from cosmopedia.evaluation.encoding import Encoder
from cosmopedia.evaluation.items import encode_items, regroup
from cosmopedia.evaluation.scorer import Scorer
from cosmopedia.evaluation.scores import Scores, detail_rows, highest_floor, over_seeds, panel, score_table, with_floor
from cosmopedia.evaluation.scoring import (
    EvaluateParams,
    Inputs,
    answer,
    encoder_of,
    load_params,
    read_inputs,
    scores_of,
)
from cosmopedia.execution.stage_process import run_stage
from cosmopedia.seeds import checkpoint_folders, seed_folders, seed_of
from stages.evaluate.floors import CORPUS, by_unigrams, longest_choice, unigram_logprobs
from stages.evaluate.record import record

MODELS, OUT = Path("models/export"), Path("data/evaluate")
SCORED = ("panels", "tasks", "groups", "heldout")
METRICS, BARS = Path("metrics/evaluate.json"), Path("metrics/plots/evaluate.csv")


def settings() -> EvaluateParams:
    """The stage's params."""
    return load_params()


def main() -> str:
    params, models = settings(), seed_folders(MODELS)
    inputs = read_inputs(params)
    encoders = {model: encoder_of(model) for model in models}
    for encoder in encoders.values():
        encode_items(encoder, inputs.all_items)  # names what cannot be scored, before anything is
    clear_folder(OUT)
    floors = score_floors(models[0], encoders[models[0]], params, inputs)
    seeds = {str(seed_of(model)): evaluate(model, encoders[model], params, inputs) for model in models}
    metrics = collect(seeds, floors, params.panels)
    write_metrics(METRICS, metrics)
    write_text(BARS, score_table(metrics))
    how = {"harness": params.harness, "shots": params.shots, "dtype": params.dtype}
    on = {**how, "items": inputs.items, "documents": inputs.documents}
    record(metrics, seeds, models, on, OUT, score_table(metrics))
    return summary_line(metrics)


def evaluate(model: Path, encoder: Encoder, params: EvaluateParams, inputs: Inputs) -> Scores:
    """Score one model with its earlier checkpoints, write the answers; returns the means of the scores.

    With several checkpoints, `over_checkpoints` has their number and standard deviations.
    """
    checkpoints = {}
    for folder in (*checkpoint_folders(model), model):
        answers = answer(folder, encoder, params, inputs)
        answers.write(OUT, model.name if folder == model else f"{model.name}-{folder.name}")
        checkpoints[folder.name] = answers.scores
    scores = over_seeds(checkpoints)
    if len(checkpoints) == 1:
        return scores
    return scores | {"over_checkpoints": {"checkpoints": len(checkpoints), **spreads(checkpoints)}}


def score_floors(model: Path, encoder: Encoder, params: EvaluateParams, inputs: Inputs) -> dict[str, Scores]:
    """The scores, by task, of an untrained model, of token counts and of the longest choice."""
    scorer = Scorer(model, params.dtype, params.batch_tokens, params.logits_mb, untrained=params.seed)
    encoded = encode_items(encoder, inputs.all_items)
    sequences = [one for item in encoded for one in item.sequences]
    values = {
        "untrained": scorer.logprobs(sequences, "choices, untrained"),
        "unigram": by_unigrams(unigram_logprobs(CORPUS, encoder.vocabulary), sequences),
    }
    floors = {
        name: scores_of(detail_rows(inputs.all_items, regroup(encoded, logprobs)), params)["tasks"]
        for name, logprobs in values.items()
    }
    return floors | {"longest": {task: longest_choice(items) for task, items in inputs.items.items()}}


def spreads(checkpoints: dict[str, Scores]) -> Scores:
    """The standard deviations of panels and held-out score over a seed's checkpoints."""
    both = {
        name: {"panels": scores["panels"], "heldout": scores["heldout"]["together"]}
        for name, scores in checkpoints.items()
    }
    means = over_seeds(both, sd=True)
    found = {
        name: {key: value for key, value in one.items() if key.endswith("_sd")}
        for name, one in means["panels"].items()
    }
    return {"panels": found, "heldout": {"bpb_sd": means["heldout"]["bpb_sd"]}}


def collect(seeds: dict[str, Scores], floors: dict[str, Scores], panels: dict[str, list[str]]) -> Scores:
    """metrics/evaluate.json."""
    metrics = over_seeds({seed: {name: scores[name] for name in SCORED} for seed, scores in seeds.items()})
    metrics["panels"] = over_seeds({seed: scores["panels"] for seed, scores in seeds.items()}, sd=True)
    metrics["heldout"] = over_seeds({seed: scores["heldout"] for seed, scores in seeds.items()}, sd=True)
    for task, scores in metrics["tasks"].items():
        metrics["tasks"][task] = with_floor(scores, highest_floor([floor[task] for floor in floors.values()]))
    for name, members in panels.items():
        means = [panel(floor[task] for task in members) for floor in floors.values()]
        metrics["panels"][name] = with_floor(metrics["panels"][name], highest_floor(means)) | {"tasks": members}
    return metrics | {
        "floors": floors,
        "seeds": {
            seed: {"panels": scores["panels"], "heldout": scores["heldout"]["together"]}
            | {name: scores[name] for name in scores if name == "over_checkpoints"}
            for seed, scores in seeds.items()
        },
    }


def summary_line(metrics: Scores) -> str:
    """The headline scores of each panel, and what they are worth."""
    parts = [f"{len(metrics['seeds'])} model(s): held-out {metrics['heldout']['together']['bpb']:.3f} bits per byte"]
    for name, scores in metrics["panels"].items():
        spread = f", sd over seeds {scores['acc_norm_sd']:.3f}" if "acc_norm_sd" in scores else ""
        worth = "" if "acc_norm" in scores["informative"] else ": not informative at this size"
        parts.append(
            f"{name} ({len(scores['tasks'])} tasks, {scores['items']} items): {scores['bpb']:.3f} bits per byte of the"
            f" right answers, acc_norm {scores['acc_norm']:.3f} ± {scores['acc_norm_stderr'] or 0:.3f}{spread}"
            f" (floor {scores['floor']['acc_norm']:.3f}{worth})"
        )
    if cut := sum(task["cut"] for task in metrics["tasks"].values()):
        parts.append(f"{cut} items are longer than the model and lost the beginning of their context")
    return "; ".join(parts)


if __name__ == "__main__":
    run_stage("evaluate", main)
