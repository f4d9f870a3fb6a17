"""What two versions were made with, by their dvc.lock files: params, and the files that are no stage's out."""

from typing import Any

from cosmopedia.execution.mlflow_params import flatten
from cosmopedia.execution.versions import Version, git, read_json

Pair = tuple[str, Any, Any]  # a name, and what the one and the other version has under it; None: nothing


def params_that_differ(versions: tuple[Version, Version]) -> list[Pair] | None:
    """Params that their stages ran with; None where a version has no dvc.lock."""
    return _pairs(versions, _params)


def inputs_that_differ(versions: tuple[Version, Version]) -> list[Pair] | None:
    """Deps that no stage makes (code, templates, curation) by hash; None where a version has no dvc.lock."""
    return _pairs(versions, _inputs)


def numbers_that_differ(versions: tuple[Version, Version]) -> list[Pair]:
    """The headline numbers, metrics/report.json; [] where a version has none."""
    sides = [_numbers(version) for version in versions]
    return _differing(*sides) if all(sides) else []


def _pairs(versions: tuple[Version, Version], read: Any) -> list[Pair] | None:
    return _differing(*map(read, versions)) if all(version.lock for version in versions) else None


def _differing(one: dict[str, Any], two: dict[str, Any]) -> list[Pair]:
    names = sorted(one.keys() | two.keys())
    return [(name, one.get(name), two.get(name)) for name in names if one.get(name) != two.get(name)]


def _params(version: Version) -> dict[str, str]:
    """By dotted name; a profile's value wins over that of params.yaml."""
    found: dict[str, str] = {}
    for kind in (False, True):
        for stage in version.lock.values():
            for file, content in (stage.get("params") or {}).items():
                if file.startswith("profiles/") == kind:
                    found |= dict(flatten(content))
    return found


def _inputs(version: Version) -> dict[str, str]:
    deps = (dep for stage in version.lock.values() for dep in stage.get("deps") or ())
    return {dep["path"]: dep.get("md5", "") for dep in deps if dep["path"] not in version.outs}


def _numbers(version: Version) -> dict[str, Any]:
    """git has this file, and not DVC's cache."""
    from json import loads

    if version.commit:
        text = git("show", f"{version.commit}:./metrics/report.json")
        return loads(text) if text else {}
    path = version.folder / "metrics/report.json"
    return read_json(path) if path.is_file() else {}
