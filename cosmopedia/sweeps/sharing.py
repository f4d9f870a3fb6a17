"""Which stages the arms of a sweep have in common, so that the first arm runs them and the others take the results."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from cosmopedia.sweeps.definition import Arm


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml."""

    name: str
    params: frozenset[tuple[str, str]]  # (file, dotted name)
    deps: frozenset[str]  # paths from the repository's root
    after: frozenset[str]  # stages whose outs it reads


def stages_of(root: Path) -> list[Stage]:
    """The stages of a checkout, each after those that it reads from."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        graph = repo.index.graph
        stages = {
            stage.addressing: Stage(
                stage.addressing,
                frozenset(
                    (_inside(dep.fs_path, root), name)
                    for dep in stage.deps
                    if hasattr(dep, "params")
                    for name in getattr(dep, "params", None) or [""]
                ),
                frozenset(_inside(dep.fs_path, root) for dep in stage.deps if not hasattr(dep, "params")),
                frozenset(other.addressing for other in graph.successors(stage)),
            )
            for stage in repo.index.stages
            if stage.is_repo_import is False and hasattr(stage, "name")
        }
    return [stages[name] for name in in_order({stage.name: stage.after for stage in stages.values()})]


def _inside(path: str, root: Path) -> str:
    return str(Path(path).relative_to(root.resolve())) if Path(path).is_relative_to(root.resolve()) else path


def in_order(needs: Mapping[str, Collection[str]]) -> list[str]:
    """The stages, each after those that it needs, otherwise in the order given."""
    ordered: dict[str, None] = {}
    places = {stage: place for place, stage in enumerate(needs)}

    def visit(stage: str) -> None:
        if stage not in ordered:
            for need in sorted((need for need in needs[stage] if need in places), key=places.__getitem__):
                visit(need)
            ordered[stage] = None

    for stage in needs:
        visit(stage)
    return list(ordered)


def signatures(stages: list[Stage], arm: Arm) -> dict[str, frozenset[str]]:
    """Of each stage the changes of an arm that reach it: its own, and those of the stages that it reads from."""
    found: dict[str, frozenset[str]] = {}
    for stage in stages:
        own = {
            f"{key}={value!r}"
            for file, values in arm.params.items()
            for key, value in values.items()
            if key not in arm.as_now and any(path == file and _overlap(key, name) for path, name in stage.params)
        }
        own |= {
            f"{file}={source}" for file, source in arm.files.items() if any(_under(file, dep) for dep in stage.deps)
        }
        found[stage.name] = frozenset(own).union(*(found.get(name, frozenset()) for name in stage.after))
    return found


def _overlap(key: str, name: str) -> bool:
    """Whether a change of a param reaches what a stage reads: one is the other, or inside it."""
    return not name or f"{key}.".startswith(f"{name}.") or f"{name}.".startswith(f"{key}.")


def _under(file: str, dep: str) -> bool:
    return f"{file}/".startswith(f"{dep}/")


def waits(stages: list[Stage], arms: Mapping[str, Arm]) -> dict[str, dict[str, set[str]]]:
    """Of each arm, which stages of which earlier arm it waits for: those that both run with equal inputs."""
    by_arm = {name: signatures(stages, arm) for name, arm in arms.items()}
    first: dict[tuple[str, frozenset[str]], str] = {}
    result: dict[str, dict[str, set[str]]] = {}
    for name, found in by_arm.items():
        result[name] = {}
        for stage, signature in found.items():
            leader = first.setdefault((stage, signature), name)
            if leader != name:
                result[name].setdefault(leader, set()).add(stage)
    return result
