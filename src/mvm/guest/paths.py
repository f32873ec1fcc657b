"""Where everything is inside a guest: the one place that knows a fixed path (CONTRACT 8).

In a machine of its own the root is `/`. The process runtime gives each instance a directory instead (`MVM_GUEST_ROOT`),
in which `data`, `run/secrets` and `etc/mvm-config` are symbolic links to what would be drives.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT_VARIABLE = "MVM_GUEST_ROOT"
WORKERS_SCOPE = "workers"
"""Scope of the secrets drive that holds the workers' tokens for the gateway's plugin; never in an environment."""


@dataclass(frozen=True)
class GuestPaths:
    """The guest's paths under `root`."""

    root: Path = Path("/")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> GuestPaths:
        """The paths under `MVM_GUEST_ROOT`; `ValueError` when that is not absolute."""
        root = Path(environment.get(ROOT_VARIABLE) or "/")
        if not root.is_absolute():
            raise ValueError(f"{ROOT_VARIABLE} has to be an absolute path, got {str(root)!r}")
        return cls(root)

    @property
    def owns_machine(self) -> bool:
        """True in a machine of its own, whose clock, caches and memory are the guest's to handle."""
        return self.root == Path("/")

    @property
    def config_dir(self) -> Path:
        return self.root / "etc/mvm-config"

    @property
    def config(self) -> Path:
        return self.config_dir / "config.json"

    @property
    def routes(self) -> Path:
        return self.config_dir / "routes.json"

    @property
    def users(self) -> Path:
        return self.config_dir / "users.json"

    @property
    def openclaw_config_source(self) -> Path:
        """OpenClaw's configuration on the config drive."""
        return self.config_dir / "openclaw.json"

    @property
    def secrets(self) -> Path:
        """The secrets drive: `<scope>/<KEY>`."""
        return self.root / "run/secrets"

    @property
    def worker_tokens(self) -> Path:
        return self.secrets / WORKERS_SCOPE

    @property
    def openclaw_run(self) -> Path:
        return self.root / "run/openclaw"

    @property
    def environment_file(self) -> Path:
        return self.openclaw_run / "env"

    @property
    def fixed_environment_file(self) -> Path:
        """What OpenClaw needs to run beside its secrets, where something else than the supervisor starts it."""
        return self.openclaw_run / "fixed-env"

    @property
    def secrets_file(self) -> Path:
        """Every secret but the workers' as one JSON object, for OpenClaw's file SecretRefs."""
        return self.openclaw_run / "secrets.json"

    @property
    def openclaw_config(self) -> Path:
        """OpenClaw's configuration where it reads and watches it."""
        return self.openclaw_run / "openclaw.json"

    @property
    def control_socket(self) -> Path:
        return self.openclaw_run / "control.sock"

    @property
    def router_token(self) -> Path:
        return self.openclaw_run / "router-token"

    @property
    def outbox_token(self) -> Path:
        return self.openclaw_run / "outbox-token"

    @property
    def mvm_run(self) -> Path:
        return self.root / "run/mvm"

    @property
    def channel(self) -> Path:
        """The channel's sockets, in a machine of its own: `guest_<port>.sock` and `host_<port>.sock`."""
        return self.mvm_run / "ch"

    @property
    def supervisor_socket(self) -> Path:
        return self.mvm_run / "supervisor.sock"

    @property
    def integrations_socket(self) -> Path:
        """Where integrations are a service of their own."""
        return self.mvm_run / "integrations.sock"

    @property
    def supervisor_record(self) -> Path:
        return self.mvm_run / "supervisor.json"

    @property
    def supervisor_lock(self) -> Path:
        return self.mvm_run / "supervisor.lock"

    @property
    def restart_pending(self) -> Path:
        """Exists from before the environment is replaced until OpenClaw runs with the new one."""
        return self.mvm_run / "openclaw-restart-pending"

    @property
    def boot_problem(self) -> Path:
        """Exists, with the reason in it, in a machine that could not be made ready to run services."""
        return self.mvm_run / "boot-problem"

    @property
    def drive_mount(self) -> Path:
        """Where a drive is mounted while it is being read; nobody else may look into it."""
        return self.mvm_run / "drive"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def openclaw_state(self) -> Path:
        return self.data / "openclaw"

    @property
    def home(self) -> Path:
        return self.data / "home"

    @property
    def mvm_data(self) -> Path:
        return self.data / "mvm"

    @property
    def journal(self) -> Path:
        return self.mvm_data / "journal.db"

    @property
    def outbox(self) -> Path:
        return self.mvm_data / "outbox.db"

    @property
    def logs(self) -> Path:
        return self.data / "log"

    def log(self, service: str) -> Path:
        """Log file of a service; its predecessor has `.1` appended."""
        return self.logs / f"{service}.log"

    @property
    def builder_config(self) -> Path:
        """What a builder is told: it has no drive for it, and its data drive is made for one build (ADR 32)."""
        return self.data / "build/config.json"

    @property
    def integrations(self) -> Path:
        return self.data / "integrations"

    def integration(self, name: str) -> Path:
        """Directory of an integration: `state/` and `checkpoint`."""
        return self.integrations / name

    def marker(self, status: str) -> Path:
        """File that exists while the guest has that status: `ready`, `idle` or `busy`."""
        return self.mvm_run / status

    def prepare(self) -> None:
        """Make the directories that the guest itself owns, readable by nobody else. Idempotent."""
        for directory in (
            self.openclaw_run,
            self.mvm_run,
            self.openclaw_state,
            self.home,
            self.mvm_data,
            self.logs,
        ):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)


def real(path: Path) -> str:
    """The path without symbolic links, for programs that refuse or resolve them (OpenClaw)."""
    return os.path.realpath(path)


def open_plainly(path: str, flags: int) -> int:
    """Opener for what a service may have put in place of a file: follows no link and waits for nobody."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def write_atomically(path: Path, content: bytes, *, mode: int = 0o600, owner: tuple[int, int] | None = None) -> None:
    """Replace a file so that every reader sees the old or the new one whole; its mode is `mode` from the first byte.

    `owner` are the numbers of user and group that get it; without it the file is the caller's.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        with open(descriptor, "wb") as file:
            if owner is not None:
                os.fchown(file.fileno(), *owner)
            os.fchmod(file.fileno(), mode)
            file.write(content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
