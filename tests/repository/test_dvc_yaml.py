"""dvc.yaml is true: deps are the import closure, params are the leaves that a stage reads, one name per step."""

import shutil
from copy import deepcopy
from difflib import ndiff
from functools import cache
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from dvc.utils.serialize import load_yaml
from pydantic import BaseModel

from cosmopedia.cli.deps import PACKAGES, imports_of, stage_files, with_code_deps
from cosmopedia.core import params
from cosmopedia.core.params import check, read_yaml, section
from cosmopedia.corpus.chat import ChatPatterns
from stages.sources.reader import reader_of, sources

ROOT = Path(__file__).parents[2]
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
STAGES = DVC["stages"]
PROFILES = sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))
# Params that let a run go or stop it, and change nothing else.
BOUNDS = {"generate.max_gpu_hours", "generate.max_tokens", "generate.max_money"}


def params_of(stage: dict, profile: str) -> dict[str, set[str]]:
    """The param keys that a stage declares, by file."""
    declared: dict[str, set[str]] = {"params.yaml": set(), f"profiles/{profile}.yaml": set()}
    for entry in stage.get("params", []):
        if isinstance(entry, str):
            declared["params.yaml"].add(entry.replace("${train.preset}", "profile").replace("${mix.preset}", "third"))
        else:
            for file, keys in entry.items():
                declared[file.replace("${profile}", profile)] |= set(keys)
    return declared


@cache
def content_of(file: str) -> dict:
    """A params file's content, read once for all tests."""
    return yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))


def lookup(content: dict, key: str):
    for part in key.split("."):
        content = content[part]
    return content


def test_there_is_one_folder_per_stage_and_nothing_else() -> None:
    entries = {path.name for path in (ROOT / "stages").iterdir()} - {"__init__.py", "__pycache__"}
    assert entries == set(STAGES)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_described_and_carries_one_name(name: str) -> None:
    stage = STAGES[name]
    assert stage["desc"].strip() and f"-m stages.{name}" in stage["cmd"]
    assert (ROOT / "stages" / name / "__main__.py").is_file()


def test_deps_are_what_the_code_imports() -> None:
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    wanted = with_code_deps(text, ROOT)
    differences = [line for line in ndiff(text.splitlines(), wanted.splitlines()) if line[0] in "+-"]
    assert not differences, "`cosmo deps` would change dvc.yaml:\n" + "\n".join(differences)


def all_modules() -> dict[str, Path]:
    """The file of each module of the repository."""
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def test_the_library_knows_no_stage() -> None:
    for name, file in all_modules().items():
        if name.startswith("cosmopedia."):
            stages = {imported for imported in imports_of(file, ROOT) if imported.startswith("stages.")}
            assert not stages, f"{name} imports {sorted(stages)}; hand it over as an argument"


def test_a_stage_imports_no_other_stage() -> None:
    for stage in STAGES:
        for file in stage_files(stage, ROOT):
            others = {n for n in imports_of(file, ROOT) if n.startswith("stages.") and n.split(".")[1] != stage}
            assert not others, f"{file.relative_to(ROOT)} imports {sorted(others)}; what is shared is the library"


def test_no_two_modules_import_each_other() -> None:
    modules = all_modules()
    graph = {name: imports_of(file, ROOT) - {name} for name, file in modules.items()}
    graph = {name: {m for m in found if modules[m].name != "__init__.py"} for name, found in graph.items()}
    TopologicalSorter(graph).prepare()  # CycleError names the modules of a cycle


@pytest.mark.slow
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", STAGES)
def test_declared_params_exist_in_exactly_one_file(name: str, profile: str) -> None:
    stage = STAGES[name]
    for item in stage.get("matrix", {}).get("source", [None]):
        for file, keys in params_of(stage, profile).items():
            for key in keys:
                lookup(content_of(file), key.replace("${item.source}", str(item)))


@pytest.mark.slow
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", [name for name, stage in STAGES.items() if "matrix" not in stage])
def test_a_stage_declares_every_leaf_of_its_section(name: str, profile: str) -> None:
    declared = params_of(STAGES[name], profile)
    for file, keys in declared.items():
        section = content_of(file).get(name, {})
        own = {key for key in keys if key == name or key.startswith(f"{name}.")}
        missing = {f"{name}.{leaf}" for leaf in section if name not in own} - {
            ".".join(key.split(".")[:2]) for key in own
        }
        missing -= BOUNDS
        assert not missing, f"{file}: {sorted(missing)} not declared by stage {name}"


@pytest.mark.slow
@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_satisfies_every_stage(profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(params, "read_yaml", cache(params.read_yaml))  # each file once, not for each of 27 sections
    recipe = content_of("params.yaml") | {"profile": profile}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    (tmp_path / "profiles").symlink_to(ROOT / "profiles")
    checked = 0
    for name in STAGES:
        module = import_module(f"stages.{name}.__main__")
        if name == "sources":
            for source in sources():
                values = check(section(f"sources.{source}", tmp_path), module.SourceParams, f"sources.{source}")
                check(values.keep, reader_of(source).keep, source)
                checked += 1
            continue
        own = "".join(part.capitalize() for part in name.split("_")) + "Params"
        models = [value for key, value in vars(module).items() if key == own]
        for model in models:
            read = {"patterns": ChatPatterns.read(ROOT)} if name == "clean" else {}  # a file of rules, no params
            check(section(name, tmp_path) | read, model, name)
            checked += 1
    without = {"sources", "export"}  # one section a source; nothing to choose
    assert checked == len(sources()) + len(STAGES.keys() - without)


def test_params_models_have_no_defaults() -> None:
    for name in STAGES:
        for value in vars(import_module(f"stages.{name}.__main__")).values():
            if isinstance(value, type) and issubclass(value, BaseModel) and value.__name__.endswith("Params"):
                for field, info in value.model_fields.items():
                    assert info.is_required(), f"{value.__name__}.{field} has a default; put it into params.yaml"


def test_no_stage_depends_on_a_folder_that_several_stages_fill() -> None:
    outs = {out if isinstance(out, str) else next(iter(out)): name for name, s in STAGES.items() for out in s["outs"]}
    for name, stage in STAGES.items():
        for dep in stage["deps"]:
            inside = [out for out in outs if out.startswith(dep.rstrip("/") + "/")]
            assert len(inside) <= 1, f"{name} depends on {dep}, which holds the outs {inside}"


@pytest.mark.slow
@pytest.mark.parametrize("profile", PROFILES)
def test_every_param_survives_dvc_lock(profile: str, tmp_path: Path) -> None:
    """Or its stage runs at every repro. DVC's emitter breaks a long text with ": " and a backslash at some depths."""
    from dvc.utils.serialize import dump_yaml, load_yaml

    written = str(tmp_path / "lock.yaml")
    files = {file: load_yaml(str(ROOT / file)) for file in ("params.yaml", f"profiles/{profile}.yaml")}
    locked = {"whole": {"params": files}}
    for name, stage in STAGES.items():
        for file, keys in params_of(stage, profile).items():
            named = [key.replace("${item.source}", source) for key in keys for source in sources()]
            values = {key: deepcopy(lookup(files[file], key)) for key in sorted(set(named))}  # no aliases
            locked.setdefault(name, {"params": {}})["params"][file] = values
    dump_yaml(written, {"schema": "2.0", "stages": locked})
    back = load_yaml(written)["stages"]
    broken = {
        f"{name}: {key}"
        for name, stage in locked.items()
        for file, values in stage["params"].items()
        for key, value in values.items()
        if back[name]["params"][file][key] != value
    }
    assert broken == set()


@pytest.mark.parametrize("file", ["params.yaml", *(f"profiles/{name}.yaml" for name in PROFILES)])
def test_dvcs_set_param_changes_what_it_sets_and_nothing_else(file: str, tmp_path: Path) -> None:
    """`dvc exp run -S` writes the whole file anew, with quotes and line breaks of its own."""
    copy = tmp_path / "params.yaml"
    shutil.copy(ROOT / file, copy)
    wanted = read_yaml(copy) | {"set_by_a_test": 1}
    apply_overrides(str(copy), ["++set_by_a_test=1"])
    assert read_yaml(copy) == wanted
    assert load_yaml(str(copy)) == wanted  # DVC's own parser is stricter than libyaml
