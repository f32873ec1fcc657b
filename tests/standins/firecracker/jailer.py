"""`jailer`, from its command line to the program that it becomes: its layout, its checks and its failures.

The chroot is laid out as the real one does it (directories, device nodes, a copy of the program, the pid file), in
control groups and with the limits that were asked for, in an empty environment. What it does not do is `chroot` and
`setuid`: `jail.py` tells the stand-in what its user could have seen instead.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import shutil
import stat
import sys
from pathlib import Path
from typing import NoReturn

from tests.standins.firecracker.firecracker import JAIL_VARIABLE
from tests.standins.firecracker.rules import INSTANCE_ID
from tests.standins.firecracker.settings import Journal, Settings

CLONE_NEWNET = 0x40000000
DEVICES = {"dev/net/tun": (10, 200), "dev/kvm": (10, 232), "dev/urandom": (1, 9)}
DIRECTORIES = ("", "dev", "dev/net", "run")
LIMITS = {"fsize": resource.RLIMIT_FSIZE, "no-file": resource.RLIMIT_NOFILE}
DEFAULT_FILES = 2048


class JailerError(Exception):
    """What the jailer says before it ends with status 1."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise JailerError(f"Failed to parse arguments: {message}")


def parser() -> argparse.ArgumentParser:
    made = _Parser(prog="jailer", add_help=False, allow_abbrev=False)
    made.add_argument("--version", action="store_true")
    for name in ("id", "exec-file", "uid", "gid", "netns", "parent-cgroup"):
        made.add_argument(f"--{name}")
    made.add_argument("--cgroup-version", default="1")
    made.add_argument("--chroot-base-dir", default="/srv/jailer")
    made.add_argument("--cgroup", action="append", default=[])
    made.add_argument("--resource-limit", action="append", default=[])
    made.add_argument("--daemonize", action="store_true")
    made.add_argument("--new-pid-ns", action="store_true")
    return made


def main(settings: Settings, arguments: list[str]) -> int:
    own, extra = arguments, []
    if "--" in arguments:
        split = arguments.index("--")
        own, extra = arguments[:split], arguments[split + 1 :]
    try:
        options = parser().parse_args(own)
        if options.version:
            print(f"Jailer v{settings.version}\n")
            return 0
        return _run(settings, options, extra)
    except JailerError as error:
        Journal(settings, "").note("jailer failed", arguments=arguments, reason=str(error))
        print(f"Error: {error}", file=sys.stderr)
        return 1


def _run(settings: Settings, options: argparse.Namespace, extra: list[str]) -> int:
    if os.geteuid() != 0:
        raise JailerError("Failed to create the jail: Operation not permitted (os error 1)")
    for name in ("id", "exec_file", "uid", "gid"):
        if getattr(options, name) is None:
            raise JailerError(f"Failed to parse arguments: Argument '{name.replace('_', '-')}' required")
    if not INSTANCE_ID.fullmatch(options.id):
        raise JailerError(f"Invalid instance ID: {options.id}")
    uid, gid = _number("uid", options.uid), _number("gid", options.gid)
    executable = _executable(options.exec_file)
    base = Path(options.chroot_base_dir)
    if not base.is_dir():
        raise JailerError(f"Failed to canonicalize path {base}: No such file or directory (os error 2)")
    root = Path(os.path.realpath(base)) / executable.name / options.id / "root"
    Journal(settings, options.id).note("jailer", options=vars(options), extra=extra, root=str(root))
    _enter_groups(options, executable.name)
    _limit(options.resource_limit)
    root.mkdir(parents=True, exist_ok=True)
    copied = root / executable.name
    shutil.copy(executable, copied)
    if options.netns is not None:
        _join(options.netns)
    _lay_out(root, uid, gid)
    os.chdir(root)
    os.closerange(3, 4096)
    if options.daemonize:
        _daemonize()
    pid_file = root / f"{executable.name}.pid"
    environment = {JAIL_VARIABLE: json.dumps([str(root), uid, gid])}
    words = [str(copied), "--id", options.id, "--start-time-us", "1", "--start-time-cpu-us", "1", *extra]
    if options.new_pid_ns:
        child = os.fork()
        if child:
            _write_pid(pid_file, child)
            return 0
    else:
        _write_pid(pid_file, os.getpid())
    os.execve(copied, words, environment)  # noqa: S606 - the program itself


def _number(name: str, value: str) -> int:
    if not value.isdecimal() or int(value) >= 2**32 - 1:
        raise JailerError(f"Invalid {name}: {value}")
    return int(value)


def _executable(named: str) -> Path:
    path = Path(os.path.realpath(named))
    if not path.exists():
        raise JailerError(f"Failed to canonicalize path {named}: No such file or directory (os error 2)")
    if not path.is_file():
        raise JailerError(f"{path} is not a file")
    if "firecracker" not in path.name:
        raise JailerError(
            f'Invalid filename. The filename of `--exec-file` option must contain "firecracker": {path.name}'
        )
    return path


def _lay_out(root: Path, uid: int, gid: int) -> None:
    for name in DIRECTORIES:
        directory = root / name
        directory.mkdir(exist_ok=True)
        directory.chmod(0o700)
        os.chown(directory, uid, gid)
    for name, (major, minor) in DEVICES.items():
        path = root / name
        try:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(major, minor))
        except FileExistsError:
            raise JailerError(
                f"Failed to create /{name} via mknod inside the jail: File exists (os error 17)"
            ) from None
        except PermissionError:
            path.touch(mode=0o600)  # where the tests run nobody may make devices; none is opened by this name
        os.chown(path, uid, gid)


def _write_pid(path: Path, pid: int) -> None:
    try:
        with path.open("x") as file:
            file.write(str(pid))
    except FileExistsError:
        raise JailerError(f"Failed to open file {path}: File exists (os error 17)") from None


def _enter_groups(options: argparse.Namespace, name: str) -> None:
    if options.cgroup_version not in ("1", "2"):
        raise JailerError(f"Invalid cgroup version: {options.cgroup_version}")
    parent = options.parent_cgroup if options.parent_cgroup is not None else name
    if any(part in ("", ".", "..") for part in parent.split("/")):
        raise JailerError("The specified parent cgroup is invalid")
    for wanted in options.cgroup:
        file, equals, value = wanted.partition("=")
        if not equals or not value or "=" in value or "." not in file or "/" in file:
            raise JailerError(f"Invalid format for cgroups: {wanted}")
        group = _group(options.cgroup_version, file.partition(".")[0]) / parent / options.id
        try:
            group.mkdir(parents=True, exist_ok=True)
            if options.cgroup_version == "2":
                _delegate(group, file.partition(".")[0])
            (group / file).write_text(value)
            (group / "cgroup.procs").write_text(str(os.getpid()))
        except OSError as error:
            raise JailerError(f"Failed to write to {group / file}: {error.strerror}") from None


def _group(version: str, controller: str) -> Path:
    """Where the groups of a controller are, by what is mounted."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup2" if version == "2" else kind == "cgroup" and controller in options.split(","):
            return Path(where)
    raise JailerError(f"Configurations for cgroup not found in /proc/mounts: version {version}, {controller}")


def _delegate(group: Path, controller: str) -> None:
    mounted = _group("2", controller)
    for place in [mounted, *reversed(group.parents)]:
        if place != mounted and mounted not in place.parents:
            continue
        if controller not in (place / "cgroup.controllers").read_text().split():
            raise JailerError(f"Controller {controller} is unavailable in {place}")
        (place / "cgroup.subtree_control").write_text(f"+{controller}")


def _limit(wanted: list[str]) -> None:
    values = {"no-file": DEFAULT_FILES}
    for each in wanted:
        name, equals, value = each.partition("=")
        if not equals or name not in LIMITS:
            raise JailerError(f"Invalid resource argument: {each}")
        if not value.isdecimal():
            raise JailerError(f"Invalid value for resource limit: {each}")
        values[name] = int(value)
    for name, value in values.items():
        resource.setrlimit(LIMITS[name], (value, value))


def _join(netns: str) -> None:
    try:
        descriptor = os.open(netns, os.O_RDONLY)
    except OSError as error:
        raise JailerError(f"Failed to open file {netns}: {error.strerror}") from None
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET) != 0:
        raise JailerError(f"Failed to set netns: {os.strerror(ctypes.get_errno())}")
    os.close(descriptor)


def _daemonize() -> None:
    os.setsid() if os.getpgrp() != os.getpid() else None
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
