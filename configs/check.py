"""Checks overrides before anything slow is imported: an unknown name is answered by the nearest known one."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from medusa_cl.errors import ConfigError, nearest, unknown

HERE = Path(__file__).parent
OVERRIDE = re.compile(r"^(?P<sign>\+\+|\+|~)?(?P<key>[A-Za-z_][\w./@-]*)(?:=(?P<value>.*))?$", re.DOTALL)
OPEN = ("hydra", "compare")  # keys checked by hydra itself, or not at all
# What Hydra takes with dashes; of the long ones it takes beginnings too.
HYDRAS = (
    *("-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "--resolve", "-p", "--package", "-r", "--run"),
    *("-m", "--multirun", "-sc", "--shell-completion", "-cp", "--config-path", "-cn", "--config-name"),
    *("-cd", "--config-dir", "--experimental-rerun", "-i", "--info"),
)
# Those of them that a value follows, and those that say what is to be done.
VALUED = (
    *("-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir"),
    *("--experimental-rerun", "-i", "--info"),
)
COMMANDS = (*(("-r", "--run"), ("-m", "--multirun"), ("-c", "--cfg"), ("-i", "--info"), ("-sc", "--shell-completion")),)
# Launchers of sweeps, and the module each comes with; other packages may bring others.
LAUNCHERS = {
    "basic": "hydra",
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "submitit_local": "hydra_plugins.hydra_submitit_launcher",
    "submitit_slurm": "hydra_plugins.hydra_submitit_launcher",
}


def groups() -> dict[str, list[str]]:
    """Return the options of every configuration group."""
    folders = sorted(path for path in HERE.iterdir() if path.is_dir())
    return {path.name: sorted(p.stem for p in path.glob("*.yaml")) for path in folders if any(path.glob("*.yaml"))}


def check_overrides(arguments: Sequence[str]) -> None:
    """Refuse misspelt keys and unknown options.

    Args:
        arguments: The command line; options of Hydra (`-m`, `--help`, ...) are passed over.

    Raises:
        ConfigError: A key or an option is unknown; the message names the nearest known one. Or a sweep cannot be: its
            launcher is not installed, or all of it would be written to one place.
    """
    _check_dashes(arguments)
    _check_words(arguments)
    _check_commands(arguments)
    if any(
        argument.startswith(("--config-dir", "-cd", "--config-path", "--config-name", "-cp", "-cn"))
        for argument in arguments
    ):
        return  # other folders bring names that are not known here
    _check_sweep(arguments)
    known = groups()
    keys = {*_keys(known), *known}
    for argument in arguments:
        match = OVERRIDE.match(argument)
        if match is None or match["sign"] in ("+", "++") or re.split(r"[./]", match["key"])[0] in OPEN:
            continue
        key, value = match["key"], match["value"]
        if value is None and match["sign"] != "~":
            continue  # the value of an option: --cfg job
        if key in known:
            _check_options(key, value or "", known[key])
        elif key not in keys:
            raise ConfigError(f'Unknown key "{key}".{nearest(key, keys)} All keys: python -m medusa_cl.run --cfg job')


def _check_dashes(arguments: Sequence[str]) -> None:
    for argument in arguments:
        name, sign, value = argument.partition("=")
        begins = any(known.startswith(name) for known in HYDRAS) if name.startswith("--") else name[:2] in HYDRAS
        if not name.startswith("-") or name in HYDRAS or begins:
            continue
        bare, known = name.lstrip("-"), groups()
        if bare in {*known, *_keys(known)}:
            raise ConfigError(f"Expected {bare}={value if sign else 'VALUE'}, without dashes, but got {argument!r}.")
        near = nearest(name, HYDRAS)
        raise ConfigError(f'Unknown option "{name}".{near} Options: python -m medusa_cl.run --hydra-help')


def _check_words(arguments: Sequence[str]) -> None:
    """Refuse words that are neither overrides nor values of options."""
    for before, argument in zip(("", *arguments), arguments, strict=False):
        if "=" in argument or argument.startswith(("-", "~")) or _is_one_of(before, VALUED):
            continue
        raise ConfigError(f"Expected key=value, but got {argument!r}. See python -m medusa_cl.run --help.")


def _check_commands(arguments: Sequence[str]) -> None:
    given = [argument for argument in arguments if any(_is_one_of(argument.split("=")[0], one) for one in COMMANDS)]
    if len(given) > 1:
        raise ConfigError(f"Expected one of {', '.join(given)}: each is another thing to do. Leave the others out.")
    shows = [argument for argument in arguments if argument.startswith(("-c", "--c", "-h", "--h"))]
    if "--resolve" in arguments and not shows:
        raise ConfigError("--resolve is said of what is shown: add --cfg job.")


def _is_one_of(argument: str, names: Sequence[str]) -> bool:
    """Return whether an argument is an option, or the beginning of a long one that can be no other."""
    full = [known for known in HYDRAS if known.startswith(argument)] if argument.startswith("--") else []
    return argument in names or (len(full) == 1 and full[0] in names)


def _check_sweep(arguments: Sequence[str]) -> None:
    sweeps = any(argument in ("-m", "--multirun") for argument in arguments)
    for key, _, value in (argument.lstrip("+").partition("=") for argument in arguments):
        if key == "hydra/launcher":
            _check_launcher(value)
        elif sweeps and (key, value) in (("trainer", "ddp"), ("trainer.distributed", "true")):
            raise ConfigError(
                f"A sweep (-m) cannot have {key}={value}: processes that train together learn one run. "
                "Start the runs one by one, each with torchrun."
            )
        elif key == "out" and sweeps and not re.search(r"[$,(]", value):
            raise ConfigError(
                f"Every member of the sweep would write to out={value}. "
                f"Leave it out, or name each: 'out={value}-${{seed}}'."
            )


def _check_launcher(name: str) -> None:
    if name in LAUNCHERS and _is_there(LAUNCHERS[name]):
        return
    if name in LAUNCHERS:
        raise ConfigError(f"The launcher {name} is not installed: pip install 'medusa_cl[sweep]' brings it.")
    if name not in (known := {*_installed_launchers(), *LAUNCHERS}):
        raise ConfigError(f"{unknown('launcher', name, known)} Most come with: pip install 'medusa_cl[sweep]'")


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the folder of plugins is
        return False


def _installed_launchers() -> list[str]:
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    Plugins.instance()  # finds them all
    return [file.removesuffix(".yaml") for file in ConfigStore.instance().list("hydra/launcher")]


def _check_options(group: str, value: str, options: Sequence[str]) -> None:
    for name in re.findall(r"[\w.-]+(?![\w.-]*\()", value):  # a word before a bracket is a sweep such as choice(a, b)
        if name not in options and name != "null":
            raise ConfigError(unknown(group, name, options))


def _keys(known: dict[str, list[str]]) -> Iterator[str]:
    """Every key that some choice of options has."""
    from omegaconf import OmegaConf

    primary: Any = OmegaConf.to_container(OmegaConf.load(HERE / "config.yaml"))
    yield from _flat({key: value for key, value in primary.items() if key != "hydra"}, "")
    for group, options in known.items():
        for option in options:
            content = OmegaConf.to_container(OmegaConf.load(HERE / group / f"{option}.yaml"))
            whole = "@package _global_" in (HERE / group / f"{option}.yaml").read_text(encoding="utf-8").split("\n")[0]
            yield from _flat(content, "" if whole else f"{group}.")


def _flat(content: Any, prefix: str) -> Iterator[str]:
    for key, value in content.items() if isinstance(content, dict) else ():
        if key == "defaults":
            continue
        yield f"{prefix}{key}"
        yield from _flat(value, f"{prefix}{key}.")
