"""Where things are on this host and what was configured, each value with its origin (CONTRACT 19).

Precedence: flag > environment > `./mvm.toml` > `/etc/mvm/mvm.toml` > default. `resolve` is pure; `locate` reads the two
files and the mount table for it. `mvm doctor` prints the origins.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import stat
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mvm.host.endpoints import SCHEME, Endpoint
from mvm.model.errors import InvalidInput

SYSTEM_CONFIG = Path("/etc/mvm/mvm.toml")
SYSTEM_STATE_DIR = Path("/var/lib/mvm")
SYSTEM_RUN_DIR = Path("/run/mvm")
SYSTEM_SOCKET = SYSTEM_RUN_DIR / "agent.sock"
"""Socket of the host's own agent: tried first by everybody who did not choose directories of their own."""

RUNTIMES = ("auto", "firecracker", "qemu", "process")
QEMU_CHANNELS = ("virtio-serial", "vsock")
FIRECRACKER_SNAPSHOTS = ("full", "diff")
NIX_BUILDS = ("host", "machine")
LOG_LEVELS = ("debug", "info", "warning", "error")

MAX_RUN_DIR_BYTES = 63
"""Longest run directory, so that the sockets of an instance under it stay below the kernel's 108 bytes."""

_ENVIRONMENT = {
    "state_dir": "MVM_STATE_DIR",
    "run_dir": "MVM_RUN_DIR",
    "programs_dir": "MVM_PROGRAMS_DIR",
    "runtime": "MVM_RUNTIME",
    "production": "MVM_PRODUCTION",
    "log_level": "MVM_LOG",
    "metrics_port": "MVM_METRICS_PORT",
    "listen": "MVM_LISTEN",
    "agent": "MVM_AGENT",
    "certs_dir": "MVM_CERTS",
    "qemu_channel": "MVM_QEMU_CHANNEL",
    "firecracker_snapshots": "MVM_FIRECRACKER_SNAPSHOTS",
    "nix_build": "MVM_NIX_BUILD",
    "autostart": "MVM_NO_AUTOSTART",
}
SETTINGS = tuple(_ENVIRONMENT)
"""Names of the settings: keys of mvm.toml, of `flags` and of `Locations.origins`."""

_CHOICES = {
    "runtime": RUNTIMES,
    "log_level": LOG_LEVELS,
    "qemu_channel": QEMU_CHANNELS,
    "firecracker_snapshots": FIRECRACKER_SNAPSHOTS,
    "nix_build": NIX_BUILDS,
}
_FORMS = {"metrics_port": 'a number from 0 to 65535, or "off"'}
_PATHS = frozenset({"state_dir", "run_dir", "programs_dir", "certs_dir"})
_SWITCHES = frozenset({"production", "autostart"})
OFF = "off"
"""What a port or an address is said to be where there shall be none."""

Setting = str | bool | int
"""A value as a flag, the environment or a file gives it."""


@dataclass(frozen=True)
class ConfigFile:
    """One mvm.toml that exists: where it is and its checked values."""

    path: Path
    values: Mapping[str, Setting]


@dataclass(frozen=True, kw_only=True)
class Locations:
    """Directories and settings of one invocation. Nothing here has been created yet."""

    state_dir: Path
    """What must survive a reboot: database, data drives, snapshots, logs."""
    run_dir: Path
    """Sockets and pids; short, because a Unix socket's path has at most 108 bytes."""
    programs_dir: Path
    """Programs that mvm installs for instances (OpenClaw); shared by all deployments."""
    secrets_dir: Path
    """Content of secrets drives: on memory-backed storage where there is any."""
    secrets_in_memory: bool
    runtime: str
    production: bool
    log_level: str
    autostart: bool
    """False when nobody may start an agent in the background (`MVM_NO_AUTOSTART=1`)."""
    metrics_port: int | None = None
    """Loopback port where the agent shows its metrics and its health; 0 is any free one, None is nowhere."""
    listen: Endpoint | None = None
    """Where the agent also takes requests from the network; port 0 is any free one, None is nowhere."""
    agent: Endpoint | None = None
    """The agent that commands talk to where it is not this host's own."""
    certs_dir: Path | None = None
    """Where an operator's certificate for such an agent is."""
    qemu_channel: str = QEMU_CHANNELS[0]
    """What carries the control channel of QEMU's machines."""
    firecracker_snapshots: str = FIRECRACKER_SNAPSHOTS[0]
    """Whether a sleep of Firecracker's machines writes all of their memory, or what has changed."""
    nix_build: str = NIX_BUILDS[0]
    """Where flakes are evaluated and built: by the host's own nix, or in a machine that is made for it."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Setting -> where its value came from, in words that `mvm doctor` prints."""

    @property
    def socket(self) -> Path:
        """Local socket of the agent that uses these directories."""
        return self.run_dir / "agent.sock"

    @property
    def chosen(self) -> bool:
        """True when somebody chose the directories: then the system agent is not the one that is meant."""
        return any(self.origins.get(name, "default") != "default" for name in ("state_dir", "run_dir"))


def parse_config(path: Path, text: str) -> ConfigFile:
    """Check the text of an mvm.toml; an unknown key is refused with its line and the nearest valid one."""
    try:
        document = tomllib.loads(text)
    except ValueError as error:  # a `TOMLDecodeError`, or a number with more digits than Python takes
        raise InvalidInput(f"{path} is not valid TOML: {error}", hint=f"correct it; its keys are: {_names()}") from None
    values: dict[str, Setting] = {}
    for key, value in document.items():
        where = f"{path}:{_line_of(text, key)}"
        if key not in SETTINGS:
            nearest = difflib.get_close_matches(key, SETTINGS, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"its keys are: {_names()}"
            raise InvalidInput(f"{where}: unknown key {key!r}", hint=hint)
        if key in _SWITCHES and isinstance(value, bool):
            values[key] = value
        elif key == "metrics_port" and isinstance(value, str | int) and not isinstance(value, bool):
            _port(value, where)
            values[key] = value
        elif key not in _SWITCHES and isinstance(value, str):
            _check(key, value, where)
            values[key] = str(path.parent / _home(value, where)) if key in _PATHS else value
        else:
            form = "true or false" if key in _SWITCHES else _FORMS.get(key, "text in quotes")
            raise InvalidInput(f"{where}: {key} is {value!r}", hint=f"write {key} as {form}")
    return ConfigFile(path, values)


def resolve(
    *,
    flags: Mapping[str, Setting],
    environ: Mapping[str, str],
    files: Iterable[ConfigFile],
    uid: int,
    cwd: Path,
    checkout: Path | None = None,
    memory_mounts: Iterable[Path] = (),
) -> Locations:
    """Decide every setting. `files` come in order of precedence; `checkout` is mvm's own source tree, if it has one
    with programs installed into it; `memory_mounts` are the mount points whose content is never on disk."""
    files = tuple(files)
    origins: dict[str, str] = {}

    def pick(name: str, default: Setting) -> Setting:
        if name in flags:
            origins[name] = f"flag --{name.replace('_', '-')}"
            return flags[name]
        variable = _ENVIRONMENT[name]
        if environ.get(variable):
            origins[name] = f"environment {variable}"
            value = environ[variable]
            if name == "production":
                return _truth(value, variable)
            return not _truth(value, variable) if name == "autostart" else value
        for file in files:
            if name in file.values:
                origins[name] = str(file.path)
                return file.values[name]
        origins[name] = "default"
        return default

    def pick_path(name: str, default: Path) -> Path:
        value = str(pick(name, str(default)))
        return Path(os.path.normpath(cwd / _home(value, origins[name])))

    default_state = _default_state_dir(environ, uid)
    state_dir = pick_path("state_dir", default_state)
    run_dir = pick_path("run_dir", _default_run_dir(environ, uid, state_dir, default_state))
    if len(os.fsencode(run_dir)) > MAX_RUN_DIR_BYTES:
        raise InvalidInput(
            f"run directory {run_dir} is {len(os.fsencode(run_dir))} bytes long and may have {MAX_RUN_DIR_BYTES} "
            f"({origins['run_dir']})",
            hint="sockets live in it and their paths are limited to 108 bytes; choose a short one with MVM_RUN_DIR",
        )
    programs_dir = pick_path("programs_dir", checkout / ".mvm/programs" if checkout else state_dir / "programs")
    if checkout and origins["programs_dir"] == "default":
        origins["programs_dir"] = "default (mvm runs from its checkout)"
    runtime, log_level = str(pick("runtime", "auto")), str(pick("log_level", "info"))
    _check("runtime", runtime, origins["runtime"])
    _check("log_level", log_level, origins["log_level"])
    qemu_channel = str(pick("qemu_channel", QEMU_CHANNELS[0]))
    _check("qemu_channel", qemu_channel, origins["qemu_channel"])
    firecracker_snapshots = str(pick("firecracker_snapshots", FIRECRACKER_SNAPSHOTS[0]))
    _check("firecracker_snapshots", firecracker_snapshots, origins["firecracker_snapshots"])
    nix_build = str(pick("nix_build", NIX_BUILDS[0]))
    _check("nix_build", nix_build, origins["nix_build"])
    metrics_port = pick("metrics_port", OFF)
    listen, agent = pick("listen", OFF), pick("agent", OFF)
    secrets_dir, in_memory = _secrets_dir(run_dir, state_dir, uid, memory_mounts)
    return Locations(
        state_dir=state_dir,
        run_dir=run_dir,
        programs_dir=programs_dir,
        secrets_dir=secrets_dir,
        secrets_in_memory=in_memory,
        runtime=runtime,
        production=bool(pick("production", False)),
        log_level=log_level,
        autostart=bool(pick("autostart", True)),
        metrics_port=_port(metrics_port, origins["metrics_port"]),
        listen=_endpoint("listen", listen, origins["listen"]),
        agent=_endpoint("agent", agent, origins["agent"]),
        certs_dir=pick_path("certs_dir", state_dir / "operator"),
        qemu_channel=qemu_channel,
        firecracker_snapshots=firecracker_snapshots,
        nix_build=nix_build,
        origins=origins,
    )


def locate(
    flags: Mapping[str, Setting] | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    uid: int | None = None,
) -> Locations:
    """Settings of this process: reads `./mvm.toml`, `/etc/mvm/mvm.toml` and the mount table. Creates nothing."""
    cwd = _current_directory() if cwd is None else cwd
    uid = os.geteuid() if uid is None else uid
    candidates = (cwd / "mvm.toml", SYSTEM_CONFIG)
    return resolve(
        flags=flags or {},
        environ=os.environ if environ is None else environ,
        files=[file for path in candidates if (file := _read(path, uid)) is not None],
        uid=uid,
        cwd=cwd,
        checkout=own_checkout(),
        memory_mounts=memory_mounts(),
    )


def _current_directory() -> Path:
    try:
        return Path.cwd()
    except OSError as error:
        raise InvalidInput(
            f"the current directory cannot be found: {error.strerror}", hint="it was removed: change to another one"
        ) from None


def own_checkout() -> Path | None:
    """mvm's own source tree when it runs from one that has programs installed (`make setup`), else None."""
    root = Path(__file__).resolve().parents[3]
    return root if (root / "pyproject.toml").is_file() and (root / ".mvm/programs").is_dir() else None


def memory_mounts(table: Path = Path("/proc/self/mounts")) -> tuple[Path, ...]:
    """Writable mount points of memory-backed file systems; empty where there is no mount table."""
    try:
        lines = table.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ()
    found = []
    for line in lines:
        _source, target, kind, options, *_ = line.split(" ")
        path = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), target))
        if kind in ("tmpfs", "ramfs") and "rw" in options.split(",") and os.access(path, os.W_OK | os.X_OK):
            found.append(path)
    return tuple(found)


def _home(written: str, where: str) -> str:
    """A path as it was written, `~` replaced; raises `InvalidInput` for what is none."""
    if not written.strip() or "\0" in written:
        raise InvalidInput(f"{where}: a directory is given that is no path", hint="write the path of a directory")
    return os.path.expanduser(written)


def _names() -> str:
    return ", ".join(SETTINGS)


def _line_of(text: str, key: str) -> int:
    pattern = re.compile(rf"\s*\[*\s*[\"']?{re.escape(key)}[\"']?\s*[=.\]]")
    return next((number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)), 1)


def _check(name: str, value: str, where: str) -> None:
    valid = _CHOICES.get(name)
    if valid and value not in valid:
        raise InvalidInput(f"{name} {value[:80]!r} is unknown ({where})", hint=f"it is one of: {', '.join(valid)}")
    if name in ("listen", "agent"):
        _endpoint(name, value, where)


def _port(value: Setting, where: str) -> int | None:
    text = str(value)
    if text == OFF:
        return None
    if re.fullmatch("[0-9]{1,5}", text) and int(text) <= 65535:
        return int(text)
    raise InvalidInput(
        f"metrics_port {text[:80]!r} is no port ({where})", hint=f"it is {_FORMS['metrics_port']}; 0 takes any free one"
    )


def _endpoint(name: str, value: Setting, where: str) -> Endpoint | None:
    """An address of the network API; an agent's is written `tls://HOST:PORT`, so that nobody takes it for another."""
    text = str(value)
    if text == OFF:
        return None
    if name == "agent":
        if not text.startswith(SCHEME):
            raise InvalidInput(
                f"agent {text[:80]!r} is no address of an agent ({where})", hint="write tls://HOST:PORT, or off"
            )
        text = text.removeprefix(SCHEME)
    return Endpoint.parse(text, name, where)


def _truth(value: str, variable: str) -> bool:
    if value in ("1", "true", "yes"):
        return True
    if value in ("0", "false", "no"):
        return False
    raise InvalidInput(f"{variable}={value[:80]!r} is neither true nor false", hint=f"set {variable} to 1 or 0")


def _default_state_dir(environ: Mapping[str, str], uid: int) -> Path:
    if uid == 0:
        return SYSTEM_STATE_DIR
    data_home = environ.get("XDG_DATA_HOME") or str(
        Path(os.path.expanduser(environ.get("HOME") or "~")) / ".local/share"
    )
    return Path(data_home) / "mvm"


def _default_run_dir(environ: Mapping[str, str], uid: int, state_dir: Path, default_state: Path) -> Path:
    """A chosen state directory gets its own run directory: agents with different state never share a socket."""
    if uid == 0:
        base = SYSTEM_RUN_DIR
    elif environ.get("XDG_RUNTIME_DIR"):
        base = Path(environ["XDG_RUNTIME_DIR"]) / "mvm"
    else:
        base = Path(f"/tmp/mvm-{uid}")  # noqa: S108 - the agent creates it 0700 and refuses one that is not its own
    return base if state_dir == default_state else base.with_name(f"{base.name}-{_tag(state_dir)}")


def _secrets_dir(run_dir: Path, state_dir: Path, uid: int, mounts: Iterable[Path]) -> tuple[Path, bool]:
    mounts = tuple(mounts)
    if any(run_dir.is_relative_to(mount) for mount in mounts):
        return run_dir / "secrets", True
    shm = Path("/dev/shm")  # noqa: S108 - the agent creates its own directory in it 0700
    if shm in mounts:
        return shm / f"mvm-{uid}-{_tag(state_dir)}", True
    return run_dir / "secrets", False


def _tag(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:8]


def _read(path: Path, uid: int) -> ConfigFile | None:
    """Read an mvm.toml if it exists; one that somebody else could have planted is refused."""
    try:
        with path.open(encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            text = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}", hint="correct or remove it") from error
    if status.st_uid not in (0, uid) or status.st_mode & stat.S_IWOTH:
        raise InvalidInput(
            f"{path} is not trusted: it belongs to uid {status.st_uid} with mode {stat.S_IMODE(status.st_mode):04o}",
            hint="it must belong to you or root and not be writable by others (chmod o-w, or run from elsewhere)",
        )
    return parse_config(path, text)
