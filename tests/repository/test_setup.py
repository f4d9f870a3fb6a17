"""`make setup` installs into this checkout's .venv, whatever is active outside, and `dvc` writes nowhere else."""

import base64
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV = Path(sysconfig.get_path("scripts")) / "uv"
BACKEND = """
import zipfile
def build_editable(folder, *_):
    name = "cosmopedia_dvc-0.1"
    with zipfile.ZipFile(f"{folder}/{name}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.dist-info/METADATA", "Metadata-Version: 2.1\\nName: cosmopedia-dvc\\nVersion: 0.1\\n")
        wheel.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{name}.dist-info/RECORD", "")
    return f"{name}-py3-none-any.whl"
"""
PROJECT = """
[project]
name = "cosmopedia-dvc"
version = "0.1"
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""


def write_wheel(folder: Path, name: str, version: str, script: Path | None = None) -> str:
    """A package of one empty module, and of a program if one is given; returns its entry in the lock file."""
    files = {f"{name}.py": b""}
    if script:
        files[f"{name}-{version}.data/scripts/{script.name}"] = script.read_bytes()
    info = f"{name}-{version}.dist-info"
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    rows = [f"{path},sha256={record_hash(content)},{len(content)}\n" for path, content in files.items()]
    files[f"{info}/RECORD"] = "".join([*rows, f"{info}/RECORD,,\n"]).encode()
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, content in files.items():
            entry = zipfile.ZipInfo(file)
            entry.external_attr = 0o100755 << 16  # a program keeps its mode
            wheel.writestr(entry, content)
    return f"{name}=={version} \\\n    --hash=sha256:{sha256(path.read_bytes()).hexdigest()}\n"


def record_hash(content: bytes) -> str:
    return base64.urlsafe_b64encode(sha256(content).digest()).rstrip(b"=").decode()


def write_lock(checkout: Path, version: str) -> None:
    wheels = checkout / "wheels"
    uv = write_wheel(wheels, "uv", "1", UV)
    base, torch = write_wheel(wheels, "one", version), write_wheel(wheels, "torch", f"{version}+cpu")
    plain = torch.replace("+cpu", "")
    sections = {"uv": uv, "base": base, "torch": plain, "torch-cpu": torch, "nanotron": ""}
    (checkout / "requirements.lock").write_text("".join(f"# {name}\n{part}" for name, part in sections.items()))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Makefile with a lock of three tiny packages, and a .venv that a failed `python -m venv` left half-made."""
    folder = tmp_path_factory.mktemp("set up") / "checkout"
    (folder / "wheels").mkdir(parents=True)
    package = ("__init__.py", "cli/__init__.py", "cli/installed.py", "execution/dvc_yaml.py")
    for name in ("Makefile", *(f"cosmopedia/{file}" for file in package)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "backend.py").write_text(BACKEND)
    (folder / "pyproject.toml").write_text(PROJECT)
    write_lock(folder, "1")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    return folder


def make(checkout: Path, target: str, **variables: object) -> subprocess.CompletedProcess[str]:
    """Run make with these variables, offline; `PYTHON` is this interpreter's own, outside any environment."""
    redirecting = ("PIP_", "UV_", "PYTHON", "VIRTUAL_ENV", "CONDA", "MAKE", "DVC_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(redirecting)}
    wheels = (checkout / "wheels").as_uri()
    sources = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": wheels, "PIP_CONFIG_FILE": os.devnull}
    sources |= {"UV_OFFLINE": "1", "UV_FIND_LINKS": wheels, "UV_NO_CONFIG": "1"}
    python = Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    return subprocess.run(
        ["make", f"PYTHON={python}", target],
        cwd=checkout,
        env=kept | sources | {name: str(value) for name, value in variables.items()},
        capture_output=True,
        text=True,
    )


def installed(checkout: Path) -> set[str]:
    return {path.name for path in checkout.glob(".venv/lib/python*/site-packages/*-*.dist-info")}


@pytest.fixture(scope="module")
def set_up(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """(the checkout after `make setup`, a folder with what others have, make's output). Each variable that could lead
    Python, pip or uv to another place does."""
    others = tmp_path_factory.mktemp("others")
    for name in ("active", "conda", "chosen"):
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", others / name], check=True)
    (others / "path").mkdir()
    for module in ("pip", "zipfile", "importlib"):
        (others / f"path/{module}.py").write_text("raise SystemExit('a module of another project')")
    (others / "constraint.txt").write_text("one==9\n")
    python = others / "chosen/bin/python"
    leading = {
        "VIRTUAL_ENV": others / "active",
        "CONDA_PREFIX": others / "conda",
        "CONDA_DEFAULT_ENV": "work",
        "UV_PYTHON": python,
        "UV_SYSTEM_PYTHON": "1",
        "UV_BREAK_SYSTEM_PACKAGES": "1",
        "UV_CONSTRAINT": others / "constraint.txt",
        "UV_WORKING_DIR": others,
        "PIP_TARGET": others / "target",
        "PIP_PREFIX": others / "prefix",
        "PIP_ROOT": others / "root",
        "PIP_USER": "1",
        "PIP_PYTHON": python,
        "PIP_DRY_RUN": "1",
        "PIP_CONSTRAINT": others / "constraint.txt",
        "PYTHONPATH": others / "path",
        "PYTHONHOME": others / "nowhere",
        "PYTHONSAFEPATH": "1",
        "PYTHONUSERBASE": others / "base",
    }
    before = sorted(others.rglob("*"))
    result = make(checkout, "setup", **leading)
    assert result.returncode == 0, result.stdout + result.stderr
    assert sorted(others.rglob("*")) == before
    return checkout, others, result.stdout + result.stderr


@pytest.mark.slow
def test_setup_rebuilds_a_half_made_environment_and_installs_into_no_other(set_up: tuple[Path, Path, str]) -> None:
    checkout, _, output = set_up
    assert "setup: done" in output and "uv cannot install" not in output and "no CPU build" not in output
    made = {"uv-1.dist-info", "one-1.dist-info", "torch-1+cpu.dist-info", "cosmopedia_dvc-0.1.dist-info"}
    assert made <= installed(checkout)


@pytest.mark.slow
def test_setup_does_not_say_done_when_packages_went_elsewhere(set_up: tuple[Path, Path, str]) -> None:
    checkout, others, _ = set_up
    write_lock(checkout, "2")
    (others / "pip.conf").write_text(f"[install]\ntarget = {others / 'target'}\n")
    result = make(checkout, "setup", PIP_CONFIG_FILE=others / "pip.conf")
    assert result.returncode and "setup: done" not in result.stdout
    assert f"not in {checkout}/.venv as requirements.lock has them: torch" in result.stderr
    again = make(checkout, "setup")
    assert again.returncode == 0 and "torch-2+cpu.dist-info" in installed(checkout), again.stderr


def test_git_does_not_see_links_to_folders_elsewhere(tmp_path: Path) -> None:
    for folder in ("", "data", "models"):
        (tmp_path / "checkout" / folder).mkdir()
        shutil.copy(ROOT / folder / ".gitignore", tmp_path / "checkout" / folder)
    subprocess.run("git init -q && git add .", shell=True, cwd=tmp_path / "checkout", check=True)
    for name in (
        ".venv",
        ".nanotron",
        ".explore",
        ".store",
        "mlruns",
        "data/generate",
        "data/prompts",
        "models/train",
    ):
        (tmp_path / "checkout" / name).symlink_to(tmp_path)
    listed = ["git", "ls-files", "--others", "--exclude-standard"]
    assert subprocess.check_output(listed, cwd=tmp_path / "checkout", text=True) == ""


HOOK = """
import os, sys
def note(event, arguments):
    flags = arguments[2] if event == "open" and isinstance(arguments[2], int) else 0
    writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or event in ("os.mkdir", "os.rename", "os.symlink", "sqlite3.connect"):
        path = os.fsdecode(arguments[0]) if isinstance(arguments[0], (str, bytes)) else ""
        os.write(LOG, (os.path.abspath(path) + chr(10)).encode())
LOG = os.open(os.environ["WRITTEN"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
sys.addaudithook(note)
"""


@pytest.mark.slow
def test_dvc_writes_to_no_folder_that_others_can_write_to(tmp_path: Path) -> None:
    """In the checkout, in an experiment's folder and in a git worktree; seen from inside by an audit hook."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "cosmopedia/execution").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "requirements.lock", "cosmopedia/execution/dvc_yaml.py"):
        shutil.copy(ROOT / name, checkout / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", checkout / ".venv"], check=True)
    (checkout / ".venv/installed").touch()
    assert make(checkout, ".venv/dvc-site-cache").returncode == 0
    zipped = make(checkout, "repro")  # before git knows the folder
    assert zipped.returncode == 2 and "this folder is no clone (a ZIP?)" in zipped.stdout
    cache = checkout / ".venv/dvc-site-cache"
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    (packages,) = checkout.glob(".venv/lib/python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))  # .venv's packages; DVC is one of them
    (packages / "audit.py").write_text(HOOK)
    (packages / "audit.pth").write_text("import audit\n")

    (checkout / ".gitignore").write_text("/.venv\n")
    (checkout / "params.yaml").write_text("a: 1\n")
    (checkout / "dvc.yaml").write_text("stages: {s: {cmd: cp params.yaml out, params: [a], outs: [out]}}\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "PYTHON", "TMPDIR"))}
    environment = kept | {"WRITTEN": str(tmp_path / "written"), "HOME": str(tmp_path), "DVC_NO_ANALYTICS": "1"}
    git = "git -c user.name=t -c user.email=t@t"
    dvc = f"{checkout}/.venv/bin/python -m dvc"
    for command, folder in (
        ("git init -q", checkout),
        (f"{dvc} init -q", checkout),
        (f"{dvc} repro -q", checkout),
        (f"git add -A && {git} commit -qm one", checkout),
        (f"{dvc} exp run -q --temp -S a=2", checkout),
        ("git worktree add -q ../worktree", checkout),
        (f"{dvc} status -q", tmp_path / "worktree"),
    ):
        done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 or "status" in command, done.stderr
    written = {Path(line) for line in (tmp_path / "written").read_text().splitlines()}
    elsewhere = {path for path in written if not path.is_relative_to(tmp_path) and path != Path(os.devnull)}
    compiled = {path.name.split(".")[0] for path in written if path.suffix != ".py"}
    assert "cosmopedia_dvc_yaml" in compiled, "what lightens DVC did not come with dvc"
    private = {path for path in elsewhere if not stat.S_IWOTH & path.parent.stat().st_mode}
    assert any(path.is_relative_to(cache) for path in written) and elsewhere <= private, elsewhere - private


@pytest.mark.slow
def test_what_torch_compiles_is_kept_where_only_its_user_writes(tmp_path: Path) -> None:
    program = "import cosmopedia; from torch._inductor.runtime.cache_dir_utils import cache_dir; print(cache_dir())"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TORCH", "XDG_"))}
    environment = kept | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == f"{tmp_path}/.cache/torchinductor", done.stderr
