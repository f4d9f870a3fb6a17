"""Job scripts: the Jinja templates of compute/templates/, and the command that puts a process into its container.

Whatever a template prints is quoted for the shell, except numbers and `Shell`, which is shell text already.
"""

import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError

from cosmopedia.core.errors import ConfigError
from cosmopedia.execution.compute import Container, Slurm

TEMPLATES = Path("compute/templates")


class Shell(str):
    """Shell text that a template prints as it is."""


def _quoted(value: Any) -> Any:
    if isinstance(value, StrictUndefined | Shell | int | float):
        return value
    return shlex.quote(str(value))


def render(template: str, **values: Any) -> str:
    """A job script from `compute/templates/<template>`. `ConfigError` names the template when it does not render."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, finalize=_quoted
    )
    try:
        return environment.get_template(template).render(values)
    except TemplateError as error:
        raise ConfigError(
            f"{TEMPLATES / template}: {error or type(error).__name__}; fix the template, or restore it with git"
        ) from None


def words(arguments: Iterable[str]) -> Shell:
    """Words of a command line, each quoted."""
    return Shell(" ".join(map(shlex.quote, arguments)))


def options_of(slurm: Slurm) -> list[Shell]:
    """What a job requests, for its script's #SBATCH lines."""
    return [directive(option) for option in slurm.options()]


def directive(option: str) -> Shell:
    """An option for a #SBATCH line, which sbatch splits at blanks, respecting quotes and backslashes."""
    name, equals, value = option.partition("=")
    if not re.search(r"[^\w@%+=:,./-]", value):
        return Shell(option)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return Shell(f'{name}{equals}"{escaped}"')


def log_option(folder: Path, name: str) -> Shell:
    """--output for a file whose name may hold Slurm's patterns (%j), in a folder whose path is taken literally.

    `ConfigError` for a backslash or a line break in the path: sbatch interprets them, however they are quoted.
    """
    forbidden = re.search(r"[\\\n]", str(folder))
    if forbidden:
        raise ConfigError(f"{folder}: sbatch takes no path with {forbidden[0]!r}; move the checkout, or $COSMO_STORE")
    return directive(f"--output={str(folder).replace('%', '%%')}/{name}")


def in_container(
    container: Container | None, nodes: int, cpus: int, writable: bool = False, passed: Iterable[str] = ()
) -> Shell:
    """What precedes a command so that it runs once per node, in the container; empty when neither needs anything.

    The container sees the job's GPUs, the network and the caches, and runs the command, not the image's entrypoint.
    `passed` names the environment variables that docker hands on; the other runtimes hand on all. srun is told its
    CPUs: since Slurm 22.05 it does not inherit sbatch's `--cpus-per-task`, and a site that binds would leave it one.
    """
    runtime = container.runtime if container else None
    command: list[str] = []
    if nodes > 1 or runtime == "pyxis":
        command += ["srun", f"--ntasks={nodes}", "--ntasks-per-node=1", f"--cpus-per-task={cpus}"]
    if container is None:
        return words(command)
    if runtime == "pyxis":
        command += [f"--container-image={container.image}", "--no-container-entrypoint"]
        if container.mounts:
            command.append(f"--container-mounts={','.join(container.mounts)}")
        if writable:
            command.append("--container-writable")
    elif runtime == "apptainer":
        local = container.image.endswith((".sif", ".sqsh"))
        command += ["apptainer", "exec", "--nv"]
        for mount in container.mounts:
            command += ["--bind", mount]
        command.append(container.image if local else f"docker://{container.image}")
    else:
        command.append("in_docker")  # a function of compute/templates/server.sh.j2
        for mount in container.mounts:
            command += ["--volume", mount]
        for name in passed:
            command += ["--env", name]
        command += ["--entrypoint", "", container.image]
    return words(command)
