"""Install all that mvm needs into this checkout: `make setup`, or `python3 scripts/setup.py` where there is no make.

Needs Python >= 3.11 with pip, and a package index; changes nothing outside the checkout but the caches of uv and npm.
  .mvm/bootstrap   uv
  .venv            the locked environment and `mvm` itself (editable); Node and npm come with it
  .mvm/programs    the pinned OpenClaw
With `--vm` (`make setup-vm`) also the host's packages that virtual machines need, by apt, where this is root on Debian.
Each step is skipped when what it made is there and fits; a run that was interrupted is simply run again.
"""

import hashlib
import json
import os
import shutil
import ssl
import subprocess
import sys
import time
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 - this file is run by whatever python3 there is
    found = ".".join(map(str, sys.version_info[:2]))
    sys.exit(f"error: mvm needs Python 3.11 or newer; {sys.executable} is {found}\nhint: python3.11 scripts/setup.py")

ROOT = Path(__file__).resolve().parents[1]
LOCAL = ROOT / ".mvm"
VENV = ROOT / ".venv"
UV = LOCAL / "bootstrap/bin/uv"
STAMPS = LOCAL / "setup.json"
STEP_TIMEOUT_SECONDS = 1800
VM_PACKAGES = (
    "qemu-system-x86",
    "nftables",
    "mmdebstrap",
    "erofs-utils",
    "e2fsprogs",
    "lz4",
    "busybox-static",
    "mount",
)
"""Debian packages: QEMU, the networks' rules, and what builds images and drives."""
CI_PACKAGES = ("chromium", "nix-bin")
"""What only tests need, and skip where it is missing; continuous integration has them all."""
APT_LISTS = Path("/var/lib/apt/lists")


class StepFailed(Exception):
    """A step did not succeed; the arguments are what happened and what to do."""


def say(text: str) -> None:
    """Progress goes to stderr, so that stdout stays free for whoever runs a command after this."""
    print(f"==> {text}", file=sys.stderr, flush=True)


def digest(*paths: Path) -> str:
    """One digest of the content of these files, of this Python and of where the checkout lies."""
    total = hashlib.sha256(f"{sys.version}\0{ROOT}\0".encode())
    for path in paths:
        total.update(path.read_bytes())
    return total.hexdigest()


def run(command: list[str], *, what: str, hint: str) -> None:
    """Run a step's command; its output is shown as it comes, and it is named when it fails."""
    try:
        status = subprocess.run(
            command, cwd=ROOT, env=environment(), check=False, stdin=subprocess.DEVNULL, timeout=STEP_TIMEOUT_SECONDS
        ).returncode
    except subprocess.TimeoutExpired:
        raise StepFailed(f"{what} was given up after {STEP_TIMEOUT_SECONDS} s: {' '.join(command)}", hint) from None
    if status:
        raise StepFailed(f"{what} failed with status {status}: {' '.join(command)}", hint)


def environment() -> dict[str, str]:
    """uv must never download a Python, and must use the index and certificates that pip was told to use."""
    settings = {**os.environ, "UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1", "PIP_NO_INPUT": "1"}
    settings.pop("VIRTUAL_ENV", None)
    for theirs, ours in (("PIP_INDEX_URL", "UV_DEFAULT_INDEX"), ("PIP_CERT", "SSL_CERT_FILE")):
        if theirs in settings:
            settings.setdefault(ours, settings[theirs])
    trusted = ssl.get_default_verify_paths()
    if trusted.cafile or (trusted.capath and any(Path(trusted.capath).iterdir())):
        settings.setdefault("UV_SYSTEM_CERTS", "1")  # so that a company's own certificate authority is known
    settings["DEBIAN_FRONTEND"] = "noninteractive"
    settings["MVM_PROGRAMS_DIR"] = str(LOCAL / "programs")
    return settings


def bootstrap(wanted: str) -> None:
    """Install uv beside nothing else. `--target` works without the venv module and on externally managed Pythons."""
    if UV.exists() and stamps().get("bootstrap") == wanted:
        return
    say("uv, from requirements/bootstrap.txt")
    # fmt: off
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--upgrade",
        "--root-user-action", "ignore", "--target", str(LOCAL / "bootstrap"), "--no-deps", "--only-binary", ":all:",
        "--require-hashes", "--requirement", "requirements/bootstrap.txt",
    ]
    # fmt: on
    run(command, what="installing uv", hint="is pip there (python3 -m pip --version), and can it reach its index?")
    stamp("bootstrap", wanted)


def python_environment(wanted: str) -> None:
    """Make `.venv` exactly what requirements/dev.txt says, and install mvm itself into it."""
    if (VENV / "bin/mvm").exists() and stamps().get("venv") == wanted:
        return
    say("Python environment in .venv, from requirements/dev.txt")
    if not runs(VENV / "bin/python"):
        run(
            [str(UV), "venv", "--quiet", "--clear", "--python", sys.executable, str(VENV)],
            what="making .venv",
            hint="remove .venv and run this again",
        )
    target = ["--python", str(VENV / "bin/python")]
    hint = "can this machine reach its package index? Run this again: what was downloaded is kept"
    sync = [
        str(UV),
        "pip",
        "sync",
        "--quiet",
        *target,
        "--compile-bytecode",
        "--require-hashes",
        "requirements/dev.txt",
    ]
    run(sync, what="installing the locked packages", hint=hint)
    itself = [str(UV), "pip", "install", "--quiet", *target, "--no-deps", "--no-build-isolation", "--editable", "."]
    run(itself, what="installing mvm", hint="the line above says why")
    stamp("venv", wanted)


def openclaw() -> None:
    """Install the pinned OpenClaw; shows its own progress and does nothing when it is there."""
    run(
        [str(VENV / "bin/python"), "-m", "mvm.openclaw.install"],
        what="installing OpenClaw",
        hint="run this again: what was downloaded is kept",
    )


def virtual_machines() -> None:
    """Install the packages that are missing, when this is root and there is apt; say what to type otherwise."""
    wanted = VM_PACKAGES + (CI_PACKAGES if os.environ.get("CI") else ())
    missing = [package for package in wanted if not is_installed(package)]
    if not missing:
        return
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
    if shutil.which("apt-get") is None:
        say(f"virtual machines need more than there is, under whatever names it has here: {', '.join(missing)}")
        return
    if os.geteuid() != 0:
        say(f"virtual machines need more than there is; as root: {' '.join(install)}")
        return
    say(f"Debian packages for virtual machines: {', '.join(missing)}")
    hint = "can this machine reach its Debian mirror?"
    patient = ["-qq", "-o", "DPkg::Lock::Timeout=300"]
    update = ["apt-get", *patient, "update"]
    if not any(APT_LISTS.glob("*_Packages*")):
        run(update, what="fetching the lists of packages", hint=hint)
    try:
        run([install[0], *patient, *install[1:]], what="installing packages", hint=hint)
    except StepFailed:  # lists that are old name versions that are gone
        run(update, what="fetching the lists of packages", hint=hint)
        run([install[0], *patient, *install[1:]], what="installing packages", hint=hint)


def is_installed(package: str) -> bool:
    """True when dpkg has the package installed and configured."""
    try:
        status = subprocess.run(
            ["dpkg-query", "--show", "--showformat=${db:Status-Abbrev}", package],
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout
    except OSError:
        return False
    return status.startswith("ii")


def runs(python: Path) -> bool:
    """True when this Python starts and is the version that this script runs on."""
    probe = "import sys; print(sys.version_info[:2])"
    try:
        answer = subprocess.run([python, "-c", probe], capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    return answer.strip() == str(sys.version_info[:2])


def stamps() -> dict[str, str]:
    """What each step was made from; empty when unreadable, so that the step is done again."""
    try:
        document = json.loads(STAMPS.read_text())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def stamp(step: str, value: str) -> None:
    """Record that a step is done, so that the next run skips it."""
    LOCAL.mkdir(exist_ok=True)
    temporary = STAMPS.with_suffix(".tmp")
    temporary.write_text(json.dumps({**stamps(), step: value}, indent=1))
    temporary.replace(STAMPS)


def main() -> int:
    """Run every step that is not done. `--no-openclaw` leaves OpenClaw out, `--bootstrap` stops after uv."""
    began = time.monotonic()
    try:
        bootstrap(digest(ROOT / "requirements/bootstrap.txt"))
        if "--bootstrap" in sys.argv[1:]:
            return 0
        python_environment(digest(ROOT / "requirements/dev.txt", ROOT / "pyproject.toml"))
        if "--no-openclaw" not in sys.argv[1:]:
            openclaw()
        if "--vm" in sys.argv[1:]:
            virtual_machines()
    except StepFailed as failure:
        what, hint = failure.args
        print(f"error: {what}\nhint: {hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run it again to go on", file=sys.stderr)
        return 130
    say(f"everything is installed ({time.monotonic() - began:.1f} s): try .venv/bin/mvm --help")
    return 0


if __name__ == "__main__":
    sys.exit(main())
