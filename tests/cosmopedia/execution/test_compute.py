"""Compute files: typed, refused with the key that is wrong, and never a place for a secret."""

from pathlib import Path

import pytest
import yaml

from cosmopedia.errors import ConfigError
from cosmopedia.execution.compute import Compute, Slurm, load_compute
from cosmopedia.execution.slurm.fleet import container_command

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("path", sorted((ROOT / "compute").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_cluster_file_of_the_repository_is_right(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSMO_COMPUTE", str(path))
    assert isinstance(load_compute(), Compute)


def changed(folder: Path, monkeypatch: pytest.MonkeyPatch, base: str, **changes: object) -> str:
    """The complaint about a cluster file with these leaves (by dotted name)."""
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
        ("local", {"serving__enigne": "cpu"}, "serving.enigne is not a parameter"),
        ("local", {"serving__instances": {"min": 3, "max": 2}}, "min 3 is more than max 2"),
        ("local", {"serving__ports": {"first": 41000, "last": 40000}}, "first 41000 is more than last 40000"),
        ("local", {"serving__ports": {"first": 80, "last": 90}}, "serving.ports.first"),
        ("slurm-h100", {"driver__lead_seconds": 7 * 86400}, "leaves nothing of time '7-00:00:00'"),
        ("local", {"serving__engine": "tgi"}, "engine tgi starts through launcher: slurm"),
        ("local", {"serving__launcher": "slurm"}, "launcher slurm needs the section serving.slurm"),
        ("local", {"data__executor": "slurm"}, "executor slurm needs the section data.slurm"),
        ("slurm-h100", {"serving__slurm__time": "tomorrow"}, "serving.slurm.time"),
        (
            "slurm-h100",
            {"serving__slurm__extra": ["exclusive"]},
            "'exclusive' is no option of sbatch; write --name=value",
        ),
        ("slurm-h100", {"serving__container__image": "vllm/vllm-openai:latest"}, "an image is named by its digest"),
        ("slurm-h100", {"serving__container__runtime": "podman"}, "serving.container.runtime"),
        ("endpoints", {"serving__endpoints": ["gpu12:8080"]}, "serving.endpoints.0.url"),
        ("slurm-h100", {"training__slurm": None}, "launcher slurm needs the section training.slurm"),
        ("slurm-h100", {"training__layout": {"dp": 4}}, "4 processes, but training.slurm asks for 2 nodes x 8 GPUs"),
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
        assert f"{section}.environment." in said and "looks like a secret" in said
        assert "hf_abcdefghijklmnop" not in said


@pytest.mark.parametrize(
    ("runtime", "image", "wanted"),
    [
        (
            "pyxis",
            "/images/tgi.sqsh",
            "srun --ntasks=1 --container-image=/images/tgi.sqsh --container-mounts='/a b:/data'",
        ),
        (
            "apptainer",
            "ghcr.io/x/tgi@sha256:" + "0" * 64,
            "apptainer exec --nv --bind '/a b:/data' docker://ghcr.io/x/tgi@",
        ),
        ("docker", "ghcr.io/x/tgi@sha256:" + "0" * 64, "docker run --rm --gpus all --network host --ipc host"),
    ],
)
def test_the_container_stands_before_the_engines_command(
    runtime: str, image: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COSMO_COMPUTE", str(ROOT / "compute/slurm-h100.yaml"))
    serving = load_compute().serving
    assert serving.container is not None
    container = serving.container.model_copy(update={"runtime": runtime, "image": image, "mounts": ["/a b:/data"]})
    assert container_command(serving.model_copy(update={"container": container})).startswith(wanted)
