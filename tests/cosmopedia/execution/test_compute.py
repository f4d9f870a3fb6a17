"""Compute files: typed, refused with the name of the wrong key, and never a place for secrets."""

from pathlib import Path

import pytest
import yaml

from cosmopedia.core.errors import ConfigError
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


HEX = "9f8e7d6c5b4a39281706f5e4d3c2b1a0"
SECRETS = [  # (file, key, value, what the complaint names)
    ("slurm-h100", "serving__arguments", ["--api-key=hidden"], "serving.arguments: --api-key"),
    ("slurm-h100", "serving__arguments", ["--api-key", "hidden"], "serving.arguments: --api-key"),
    ("slurm-h100", "serving__slurm__setup", ["export HF_TOKEN='hidden'"], "serving.slurm.setup: HF_TOKEN"),
    ("slurm-h100", "data__slurm__setup", ["curl -H 'Authorization: Bearer hidden-hidden'"], "data.slurm.setup: "),
    ("slurm-h100", "driver__setup", [f"export MY_KEY={HEX}"], "driver.setup: MY_KEY"),
    ("slurm-h100", "serving__slurm__extra", ["--export=ALL,DB_PASSWORD=hidden"], "serving.slurm.extra: DB_PASSWORD"),
    (
        "slurm-h100",
        "serving__container__image",
        "docker://me:hidden@registry/x.sqsh",
        "serving.container.image: an add",
    ),
    (
        "slurm-h100",
        "serving__container__mounts",
        ["github_pat_hidden0123456789abc:/x"],
        "serving.container.mounts: a va",
    ),
    ("slurm-h100", "training__environment", {"OTHER": "AKIAIOSFODNN7EXAMPLE"}, "training.environment: OTHER"),
    ("slurm-h100", "training__environment", {"WANDB_API_KEY": 12345678}, "training.environment: WANDB_API_KEY"),
    ("slurm-h100", "training__environment", {"SITE_AUTH": HEX}, "training.environment: SITE_AUTH"),
    ("endpoints", "serving__endpoints", ["http://me:hidden@host:80"], "serving.endpoints: an address with a password"),
    ("endpoints", "serving__endpoints", ["https://host/?api_key=hidden"], "serving.endpoints: api_key"),
    (
        "endpoints",
        "serving__endpoints",
        [{"url": "http://me:hidden@host"}],
        "serving.endpoints.0.url: an address with",
    ),
    ("endpoints", "serving__endpoints", [{"url": "http://h", "token_env": HEX}], "serving.endpoints.0.token_env: tok"),
]


@pytest.mark.parametrize(("base", "key", "value", "said"), SECRETS)
def test_a_secret_is_refused_under_every_key_and_not_repeated(
    base: str, key: str, value: object, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = changed(tmp_path, monkeypatch, base, **{key: value})
    assert said in shown and "looks like a secret; remove it from the file and export it" in shown
    assert not any(secret in shown for secret in ("hidden", HEX, "AKIA", "12345678"))


@pytest.mark.parametrize(
    ("base", "key", "value", "said"),
    [
        ("slurm-cpu", "serving__slurm__partition", "gpu\ntouch /tmp/x", "serving.slurm.partition: 'gpu\\ntouch"),
        ("slurm-cpu", "data__slurm__account", "gpu\n", "data.slurm.account: 'gpu\\n' holds a line break"),
        ("slurm-cpu", "driver__qos", "$(touch x)", "driver.qos: string should match pattern"),
        ("slurm-cpu", "serving__slurm__partition", "a b", "serving.slurm.partition: string should match pattern"),
        ("slurm-cpu", "serving__slurm__extra", ["--comment=a\nb"], "serving.slurm.extra.0: '--comment=a\\nb' holds"),
        ("slurm-h100", "serving__arguments", ["--a=b\x00c"], "serving.arguments.0: '--a=b\\x00c' holds"),
        ("slurm-h100", "serving__environment", {"A;touch x": "1"}, "serving.environment.A;touch x"),
        ("slurm-h100", "serving__environment", {"A": "1\n2"}, "serving.environment.A: '1\\n2' holds a line break"),
        ("slurm-h100", "serving__container__image", "-v/:/x.sqsh", "serving.container.image: name an image by"),
        ("slurm-h100", "training__python", "python\n", "training.python: 'python\\n' holds a line break"),
        ("endpoints", "serving__endpoints", [{"url": "http://me@host"}], "found 'http://[redacted]@host'"),
    ],
)
def test_what_could_become_shell_or_a_line_of_its_own_is_refused(
    base: str, key: str, value: object, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said in changed(tmp_path, monkeypatch, base, **{key: value})


def test_setup_is_shell_and_may_read_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = yaml.safe_load((ROOT / "compute/slurm-h100.yaml").read_text())
    content["serving"]["slurm"]["setup"] = ["module load cuda\nulimit -n 65536", "export HF_TOKEN=$(cat ~/.token)"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setenv("COSMO_COMPUTE", str(tmp_path / "mine.yaml"))
    assert isinstance(load_compute(), Compute)


@pytest.mark.parametrize(
    ("engine", "runtime", "image", "warned"),
    [
        ("tgi", "apptainer", "/images/tgi.sif", True),
        ("tgi", "apptainer", "ghcr.io/x/tgi:3.3.7@sha256:" + "0" * 64, True),
        ("tgi", "apptainer", "ghcr.io/x/tgi:3.1.0@sha256:" + "0" * 64, False),
        ("tgi", "pyxis", "/images/tgi.sqsh", False),
        ("vllm", "apptainer", "/images/vllm.sif", False),
    ],
)
def test_tgi_under_apptainer_is_warned_of_and_vllm_offered(
    engine: str, runtime: str, image: str, warned: bool
) -> None:
    content = yaml.safe_load((ROOT / "compute/slurm-h100.yaml").read_text())
    content["serving"] |= {"engine": engine, "container": {"runtime": runtime, "image": image}}
    warnings = Compute.model_validate(content).warnings
    assert len(warnings) == warned and all("use engine: vllm" in warning for warning in warnings)


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
            " --no-container-entrypoint '--container-mounts=/a b:/data'",
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
            "in_docker --volume '/a b:/data' --env HF_TOKEN --entrypoint '' ghcr.io/x/tgi@",
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
