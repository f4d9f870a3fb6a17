"""Compute files: typed, refused with the name of the wrong key, and never a place for secrets."""

from pathlib import Path

import pytest
import yaml

from cosmopedia.errors import ConfigError
from cosmopedia.execution.compute import Compute, Container, Slurm, _warn_old_name, compute_path, load_compute
from cosmopedia.execution.slurm.job_scripts import in_container

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("path", sorted((ROOT / "compute").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_compute_file_of_the_repository_is_right(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSMO_COMPUTE", str(path))
    assert isinstance(load_compute(), Compute)


def changed(folder: Path, monkeypatch: pytest.MonkeyPatch, base: str, **changes: object) -> str:
    """The complaint about a compute file with these leaves (by dotted name)."""
    content = yaml.safe_load((ROOT / f"compute/{base}.yaml").read_text())
    for dotted, value in changes.items():
        *parts, leaf = dotted.split("__")
        node = content
        for part in parts:
            node = node[part]
        node[leaf] = value
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    monkeypatch.setenv("COSMO_COMPUTE", str(path))
    with pytest.raises(ConfigError) as error:
        load_compute()
    return str(error.value)


@pytest.mark.parametrize(
    ("base", "changes", "said"),
    [
        ("local", {"serving__enigne": "cpu"}, "serving.enigne is not a key; with engine cpu and launcher local the"),
        (
            "slurm-cpu",
            {"serving__slurm__tmie": "1"},
            "serving.slurm.tmie is not a key; remove it, or look",
        ),
        (
            "local",
            {"serving__engine": "sglang"},
            "is 'sglang'; it must be one of cpu, external, tgi, vllm",
        ),
        ("slurm-cpu", {"serving__launcher": "ray"}, "serving.launcher is 'ray'; it must be one of local, slurm"),
        ("slurm-cpu", {"serving__instances": {"min": 3, "max": 2}}, "min 3 is more than max 2"),
        ("slurm-cpu", {"serving__ports": {"first": 41000, "last": 40000}}, "first 41000 is more than last 40000"),
        ("slurm-cpu", {"serving__ports": {"first": 80, "last": 90}}, "serving.ports.first"),
        ("slurm-h100", {"driver__lead_seconds": 7 * 86400}, "leaves nothing of time '7-00:00:00'"),
        ("local", {"serving__engine": "tgi"}, "for a server that is running, use engine: external"),
        (
            "local",
            {"serving__launcher": "slurm"},
            "serving.slurm is missing (it is needed with engine cpu",
        ),
        ("local", {"data__executor": "slurm"}, "data.slurm is missing (it is needed with executor slurm)"),
        ("slurm-h100", {"serving__slurm__time": "tomorrow"}, "serving.slurm.time"),
        (
            "slurm-h100",
            {"serving__slurm__extra": ["exclusive"]},
            "'exclusive' is not an option of sbatch; write --name=value",
        ),
        ("slurm-h100", {"serving__container__image": "vllm/vllm-openai:latest"}, "name an image by its digest"),
        ("slurm-h100", {"serving__container__runtime": "podman"}, "serving.container.runtime"),
        ("endpoints", {"serving__endpoints": ["gpu12:8080"]}, "serving.endpoints.0.url"),
        ("local", {"training__launcher": "slurm"}, "training.slurm is missing (it is needed with launcher slurm)"),
        ("slurm-h100", {"training__layout": {"dp": 4}}, "4 processes, but training.slurm requests 2 nodes x 8 GPUs"),
        ("slurm-h100", {"training__layout": {"dp": 3}}, "3 processes do not fill 2 nodes evenly"),
        ("slurm-h100", {"training__warn_seconds": 90_000}, "warn_seconds 90000 leaves nothing of time '24:00:00'"),
        (
            "slurm-h100",
            {"training__container": {"runtime": "docker", "image": "a@sha256:" + "0" * 64}},
            "training runs in pyxis or apptainer",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_key(
    base: str, changes: dict[str, object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said in changed(tmp_path, monkeypatch, base, **changes)


FOREIGN = {  # (file, key): where the key has an effect
    ("local", "serving.gpus"): "engine external, or engine tgi, or engine vllm",
    ("local", "serving.endpoints"): "engine external",
    ("local", "serving.idle_minutes"): "engine cpu and launcher slurm, or engine tgi, or engine vllm",
    ("slurm-h100", "serving.batch_size"): "engine cpu and launcher local, or engine cpu and launcher slurm",
    ("endpoints", "serving.instances"): "engine cpu and launcher local",
    ("slurm-cpu", "serving.container"): "engine tgi, or engine vllm",
    ("local", "data.retries"): "executor slurm, or executor ray",
    ("local", "training.slurm"): "launcher slurm",
}


@pytest.mark.parametrize(("base", "key"), FOREIGN)
def test_a_key_of_another_engine_is_to_be_removed(
    base: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = changed(tmp_path, monkeypatch, base, **{key.replace(".", "__"): 1})
    assert f"remove {key}: it has no effect with " in said and f"only with {FOREIGN[base, key]}" in said


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("90", 5400), ("1:30", 90), ("2:00:05", 7205), ("1-2", 93_600), ("1-2:30", 95_400), ("7-00:00:00", 604_800)],
)
def test_slurms_notation_of_time(time: str, seconds: int) -> None:
    assert Slurm(time=time).seconds() == seconds


@pytest.mark.parametrize(
    "environment", [{"HF_TOKEN": "x"}, {"MY_API_KEY": "x"}, {"OTHER": "hf_abcdefghijklmnop"}, {"DB_PASSWORD": "x"}]
)
def test_a_secret_is_refused_and_not_repeated(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for section in ("serving", "training"):
        said = changed(tmp_path, monkeypatch, "slurm-h100", **{f"{section}__environment": environment})
        assert f"{section}.environment: " in said and "looks like a secret" in said
        assert "hf_abcdefghijklmnop" not in said


@pytest.mark.parametrize(
    ("runtime", "image", "wanted"),
    [
        (
            "pyxis",
            "/images/tgi.sqsh",
            "srun --ntasks=2 --ntasks-per-node=1 --cpus-per-task=22 --container-image=/images/tgi.sqsh"
            " '--container-mounts=/a b:/data'",
        ),
        (
            "apptainer",
            "ghcr.io/x/tgi@sha256:" + "0" * 64,
            "srun --ntasks=2 --ntasks-per-node=1 --cpus-per-task=22 apptainer exec --nv --bind '/a b:/data'"
            " docker://ghcr.io/x/tgi@",
        ),
        (
            "docker",
            "ghcr.io/x/tgi@sha256:" + "0" * 64,
            "docker run --rm --gpus all --network host --ipc host --volume '/a b:/data' --env HF_TOKEN --entrypoint",
        ),
    ],
)
def test_the_container_precedes_the_command_and_gets_the_jobs_cpus(runtime: str, image: str, wanted: str) -> None:
    """Since Slurm 22.05, srun does not inherit --cpus-per-task."""
    container = Container.model_validate({"runtime": runtime, "image": image, "mounts": ["/a b:/data"]})
    nodes = 1 if runtime == "docker" else 2
    assert in_container(container, nodes, cpus=22, passed=["HF_TOKEN"]).startswith(wanted)
    assert in_container(None, 1, cpus=22) == ""


def test_the_older_variable_still_counts_with_a_warning(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COSMO_CLUSTER", "endpoints")
    _warn_old_name.cache_clear()
    assert compute_path() == compute_path() == Path("compute/endpoints.yaml")
    assert capsys.readouterr().err.count("$COSMO_CLUSTER is now called $COSMO_COMPUTE") == 1
    monkeypatch.setenv("COSMO_COMPUTE", "mine")
    assert compute_path() == Path("compute/mine.yaml") and not capsys.readouterr().err
