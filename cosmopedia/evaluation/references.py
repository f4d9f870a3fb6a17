"""Other people's models as lines of reference under a comparison: what the stage baselines has scored."""

from collections.abc import Mapping
from pathlib import Path

from cosmopedia.evaluation.effects import seed_scores
from cosmopedia.evaluation.readings import ALL_SETS, HELD_OUT, Readings, Scope, parts, read, scopes
from cosmopedia.evaluation.wording import PRIMARY, UNITS, shown

BASELINES = Path("data/baselines")


def lines(arm: Readings, panels: Mapping[str, list[str]], folder: Path = BASELINES) -> list[str]:
    """A line per baseline that answered the arm's items, and one for those that answered others."""
    found, others = [], []
    for path in sorted(folder.glob("*.parquet")):
        held_out = path.with_name(f"heldout-{path.name}")
        if not held_out.is_file():  # it is itself the held-out table of another
            continue
        baseline = read(path.stem, {0: [path]}, {0: [held_out]})
        same = zip(arm.identities, baseline.identities, strict=True)
        if all(ours is None or ours.equals(theirs) for ours, theirs in same):
            found.append(f"for scale, {path.stem}: {_scores(baseline, panels, bool(arm.sets))}")
        else:
            others.append(path.stem)
    if others:
        found.append(f"{', '.join(others)} ({folder}) answered other items, and cannot be put next to these arms")
    return found


def _scores(baseline: Readings, panels: Mapping[str, list[str]], with_sets: bool) -> str:
    """Held-out text and each panel's headline measures."""
    known = scopes(baseline, panels)
    chosen = [scope for scope in known if scope.kind == "panel" and scope.measure in (PRIMARY, "acc_norm")]
    together = Scope("held-out", ALL_SETS, HELD_OUT)
    if with_sets and together in known:
        chosen.insert(0, together)
    scores = {scope: float(seed_scores(parts(known[scope], scope.measure))[0]) for scope in chosen}
    return ", ".join(
        f"{scope.name} {shown(scope.measure, value)} {UNITS[scope.measure].unit}"
        + ("" if scope.measure == HELD_OUT else f" ({scope.measure})")
        for scope, value in scores.items()
    )
