"""dvc.yaml says the truth: deps are the import closure, params are the leaves that a stage reads, one name a step."""

import ast
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from stages.seeds.readers import READERS
from stages.settings import check, load, section

ROOT = Path(__file__).parents[1]
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
STAGES = DVC["stages"]
PROFILES = sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))
# Where and how work runs can never change a result, so these modules may change without rerunning a stage.
EXECUTION = {
    "stages/clusters.py",
    "stages/launch/arrays.py",
    "stages/launch/leash.py",
    "stages/launch/scratch.py",
    "stages/launch/servers.py",
    "stages/launch/slurm.py",
    "stages/launch/supervisor.py",
    "stages/launch/training.py",
    "stages/progress.py",
    "stages/serving/budget.py",
    "stages/serving/monitor.py",
    "stages/tracking.py",
    "stages/training/forecast.py",
}
# Params that let a run go or stop it, and change nothing else.
BOUNDS = {"generate.max_gpu_hours", "generate.max_tokens"}


def module_file(name: str) -> Path | None:
    """The file of a `stages...` module, or None when the name is no module of this repository."""
    path = ROOT / Path(*name.split("."))
    if path.with_suffix(".py").is_file():
        return path.with_suffix(".py")
    return path / "__init__.py" if (path / "__init__.py").is_file() else None


def imports_of(file: Path) -> set[str]:
    """Modules of this repository that a file imports anywhere, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("stages."):
            names.add(node.value)  # started as a process: python -m stages.serving.cpu_server
    return {name for name in names if name.startswith("stages.") and module_file(name)}


def closure(stage: str) -> set[str]:
    """Paths of all modules that a stage's script imports, itself included; packages' docstring files left out."""
    found, waiting = set(), [f"stages.{stage}"]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            file = module_file(name)
            if (
                file and file.relative_to(ROOT).as_posix() not in EXECUTION
            ):  # what only these need changes nothing either
                waiting += imports_of(file)
    files = {module_file(name) for name in found}
    return {file.relative_to(ROOT).as_posix() for file in files if file and file.name != "__init__.py"}


def params_of(stage: dict, profile: str) -> dict[str, set[str]]:
    """The param keys that a stage declares, by file."""
    declared: dict[str, set[str]] = {"params.yaml": set(), f"profiles/{profile}.yaml": set()}
    for entry in stage.get("params", []):
        if isinstance(entry, str):
            declared["params.yaml"].add(entry)
        else:
            for file, keys in entry.items():
                declared[file.replace("${profile}", profile)] |= set(keys)
    return declared


def lookup(content: dict, key: str):
    for part in key.split("."):
        content = content[part]
    return content


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_described_and_carries_one_name(name: str) -> None:
    stage = STAGES[name]
    assert stage["desc"].strip() and f"-m stages.{name}" in stage["cmd"]
    assert (ROOT / "stages" / f"{name}.py").is_file()


@pytest.mark.parametrize("name", STAGES)
def test_deps_are_the_import_closure(name: str) -> None:
    declared = {dep for dep in STAGES[name]["deps"] if dep.startswith("stages/") and dep.endswith(".py")}
    wanted = closure(name) - EXECUTION
    assert declared == wanted, f"missing {sorted(wanted - declared)}, not imported {sorted(declared - wanted)}"


@pytest.mark.slow
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", STAGES)
def test_declared_params_exist_in_exactly_one_file(name: str, profile: str) -> None:
    stage = STAGES[name]
    for item in stage.get("matrix", {}).get("source", [None]):
        for file, keys in params_of(stage, profile).items():
            content = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))
            for key in keys:
                lookup(content, key.replace("${item.source}", str(item)))


@pytest.mark.slow
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", [name for name, stage in STAGES.items() if "matrix" not in stage])
def test_a_stage_declares_every_leaf_of_its_section(name: str, profile: str) -> None:
    declared = params_of(STAGES[name], profile)
    for file, keys in declared.items():
        section = yaml.safe_load((ROOT / file).read_text(encoding="utf-8")).get(name, {})
        own = {key for key in keys if key == name or key.startswith(f"{name}.")}
        missing = {f"{name}.{leaf}" for leaf in section if name not in own} - {
            ".".join(key.split(".")[:2]) for key in own
        }
        missing -= BOUNDS
        assert not missing, f"{file}: {sorted(missing)} not declared by stage {name}"


@pytest.mark.slow
@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_satisfies_every_stage(profile: str, tmp_path: Path) -> None:
    recipe = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({**recipe, "profile": profile}), encoding="utf-8")
    (tmp_path / "profiles").symlink_to(ROOT / "profiles")
    checked = 0
    for name in STAGES:
        module = import_module(f"stages.{name}")
        if name == "sources":
            for source, reader in READERS.items():
                params = check(section(f"sources.{source}", tmp_path), module.SourceParams, f"sources.{source}")
                check(params.keep, reader.keep, source)
                checked += 1
            continue
        own = "".join(part.capitalize() for part in name.split("_")) + "Params"
        models = [value for key, value in vars(module).items() if key == own]
        for model in models:
            load(name, model, tmp_path)
            checked += 1
    without = {"sources", "export"}  # one section a source; nothing to choose
    assert checked == len(READERS) + len(STAGES.keys() - without)


def test_params_models_have_no_defaults() -> None:
    for name in STAGES:
        for value in vars(import_module(f"stages.{name}")).values():
            if isinstance(value, type) and issubclass(value, BaseModel) and value.__name__.endswith("Params"):
                for field, info in value.model_fields.items():
                    assert info.is_required(), f"{value.__name__}.{field} has a default; put it into params.yaml"


def test_no_stage_depends_on_a_folder_that_several_stages_fill() -> None:
    outs = {out if isinstance(out, str) else next(iter(out)): name for name, s in STAGES.items() for out in s["outs"]}
    for name, stage in STAGES.items():
        for dep in stage["deps"]:
            inside = [out for out in outs if out.startswith(dep.rstrip("/") + "/")]
            assert len(inside) <= 1, f"{name} depends on {dep}, which holds the outs {inside}"
