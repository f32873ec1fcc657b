"""Where each setting comes from: flag > environment > ./mvm.toml > /etc/mvm/mvm.toml > default."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvm.host.endpoints import Endpoint
from mvm.host.locations import MAX_RUN_DIR_BYTES, ConfigFile, Locations, locate, memory_mounts, parse_config, resolve
from mvm.model.errors import InvalidInput


def resolved(**changes: Any) -> Locations:
    given: dict[str, Any] = {"flags": {}, "environ": {"HOME": "/home/a"}, "files": [], "uid": 1000, "cwd": Path("/w")}
    return resolve(**{**given, **changes})


def test_root_uses_the_system_directories() -> None:
    found = resolved(uid=0)
    assert (found.state_dir, found.run_dir) == (Path("/var/lib/mvm"), Path("/run/mvm"))
    assert found.socket == Path("/run/mvm/agent.sock")
    assert not found.chosen
    assert set(found.origins.values()) == {"default"}


def test_a_user_has_directories_of_their_own() -> None:
    found = resolved(environ={"HOME": "/home/a", "XDG_RUNTIME_DIR": "/run/user/1000"})
    assert found.state_dir == Path("/home/a/.local/share/mvm")
    assert found.run_dir == Path("/run/user/1000/mvm")
    assert resolved().run_dir == Path("/tmp/mvm-1000")


def test_precedence_from_default_up_to_flag() -> None:
    etc = ConfigFile(Path("/etc/mvm/mvm.toml"), {"runtime": "qemu", "log_level": "error"})
    here = ConfigFile(Path("/w/mvm.toml"), {"runtime": "process"})
    assert resolved().runtime == "auto"
    assert resolved(files=[etc]).runtime == "qemu"
    both = resolved(files=[here, etc])
    assert (both.runtime, both.origins["runtime"]) == ("process", "/w/mvm.toml")
    assert (both.log_level, both.origins["log_level"]) == ("error", "/etc/mvm/mvm.toml")
    env = resolved(files=[here, etc], environ={"MVM_RUNTIME": "firecracker"})
    assert (env.runtime, env.origins["runtime"]) == ("firecracker", "environment MVM_RUNTIME")
    flag = resolved(files=[here, etc], environ={"MVM_RUNTIME": "firecracker"}, flags={"runtime": "auto"})
    assert (flag.runtime, flag.origins["runtime"]) == ("auto", "flag --runtime")


def test_a_chosen_state_directory_gets_a_run_directory_of_its_own() -> None:
    one, two = (resolved(uid=0, environ={"MVM_STATE_DIR": path}) for path in ("/a", "/b"))
    assert one.run_dir != two.run_dir != Path("/run/mvm")
    assert one.chosen
    assert len(str(one.run_dir)) < 20


def test_switches_of_the_environment() -> None:
    assert resolved(environ={"MVM_PRODUCTION": "1"}).production
    assert not resolved(environ={"MVM_NO_AUTOSTART": "1"}).autostart
    assert resolved(environ={"MVM_NO_AUTOSTART": "0"}).autostart
    with pytest.raises(InvalidInput, match="MVM_PRODUCTION='perhaps'"):
        resolved(environ={"MVM_PRODUCTION": "perhaps"})


def test_metrics_are_off_until_a_port_is_set() -> None:
    assert resolved().metrics_port is None
    file = parse_config(Path("/etc/mvm/mvm.toml"), "metrics_port = 9464\n")
    assert resolved(files=[file]).metrics_port == 9464
    zero = resolved(files=[file], environ={"MVM_METRICS_PORT": "0"})
    assert (zero.metrics_port, zero.origins["metrics_port"]) == (0, "environment MVM_METRICS_PORT")
    assert resolved(files=[file], environ={"MVM_METRICS_PORT": "0"}, flags={"metrics_port": "off"}).metrics_port is None
    with pytest.raises(InvalidInput, match=r"'-1' is no port \(flag --metrics-port\)"):
        resolved(flags={"metrics_port": "-1"})


def test_secrets_are_kept_in_memory_where_there_is_any() -> None:
    shm = resolved(memory_mounts=[Path("/dev/shm")])
    assert shm.secrets_in_memory
    assert shm.secrets_dir.is_relative_to("/dev/shm")
    run = resolved(uid=0, memory_mounts=[Path("/run"), Path("/dev/shm")])
    assert (run.secrets_dir, run.secrets_in_memory) == (Path("/run/mvm/secrets"), True)
    none = resolved()
    assert (none.secrets_dir, none.secrets_in_memory) == (none.run_dir / "secrets", False)


def test_programs_are_found_in_a_checkout() -> None:
    assert resolved().programs_dir == Path("/home/a/.local/share/mvm/programs")
    inside = resolved(checkout=Path("/src"))
    assert inside.programs_dir == Path("/src/.mvm/programs")
    assert "checkout" in inside.origins["programs_dir"]
    assert resolved(checkout=Path("/src"), environ={"MVM_PROGRAMS_DIR": "p"}).programs_dir == Path("/w/p")


def test_the_network_api_is_off_until_an_address_is_given() -> None:
    assert (resolved().listen, resolved().agent) == (None, None)
    file = parse_config(Path("/etc/mvm/mvm.toml"), 'listen = "[::1]:4433"\ncerts_dir = "mine"\n')
    found = resolved(files=[file], environ={"MVM_AGENT": "tls://mvm.example:4433"})
    assert (found.listen, str(found.listen)) == (Endpoint("::1", 4433), "[::1]:4433")
    assert (found.agent, found.certs_dir) == (Endpoint("mvm.example", 4433), Path("/etc/mvm/mine"))
    assert resolved(files=[file], flags={"listen": "off"}).listen is None
    with pytest.raises(InvalidInput, match=r"listen 'nowhere' is no address \(environment MVM_LISTEN\)"):
        resolved(environ={"MVM_LISTEN": "nowhere"})


def test_snapshots_are_whole_unless_it_is_said() -> None:
    assert resolved().firecracker_snapshots == "full"
    assert resolved(environ={"MVM_FIRECRACKER_SNAPSHOTS": "diff"}).firecracker_snapshots == "diff"


def test_a_run_directory_too_long_for_sockets_is_refused() -> None:
    with pytest.raises(InvalidInput, match="MVM_RUN_DIR") as caught:
        resolved(environ={"MVM_RUN_DIR": "/" + "x" * MAX_RUN_DIR_BYTES})
    assert caught.value.hint is not None


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ('\nruntme = "qemu"\n', "mvm.toml:2: unknown key 'runtme'", "did you mean 'runtime'?"),
        ('colour = "red"\n', "mvm.toml:1: unknown key 'colour'", "its keys are: state_dir"),
        ("[daemon]\nport = 1\n", "mvm.toml:1: unknown key 'daemon'", "its keys are"),
        ("listen = 4433\n", "mvm.toml:1: listen is 4433", "text in quotes"),
        ('listen = "4433"\n', "listen '4433' is no address", "HOST:PORT"),
        ('listen = "host:70000"\n', "listen 'host:70000' is no address", "HOST:PORT"),
        ('agent = "host:4433"\n', "agent 'host:4433' is no address of an agent", "tls://HOST:PORT"),
        ("production = 1\n", "mvm.toml:1: production is 1", "true or false"),
        ('runtime = "vmware"\n', "runtime 'vmware' is unknown", "firecracker"),
        ('firecracker_snapshots = "half"\n', "firecracker_snapshots 'half' is unknown", "full, diff"),
        ("runtime = \n", "not valid TOML", "its keys are"),
        (f"metrics_port = {'1' * 5000}\n", "not valid TOML", "its keys are"),
        ("metrics_port = true\n", "mvm.toml:1: metrics_port is True", "from 0 to 65535"),
        ("metrics_port = 65536\n", "metrics_port '65536' is no port", "0 takes any free one"),
        ('metrics_port = "on"\n', "metrics_port 'on' is no port", "from 0 to 65535"),
    ],
)
def test_a_configuration_file_is_strict(text: str, message: str, hint: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_config(Path("/w/mvm.toml"), text)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


def test_paths_in_a_file_are_relative_to_it() -> None:
    file = parse_config(Path("/etc/mvm/mvm.toml"), 'state_dir = "state"\nproduction = true\nautostart = false\n')
    found = resolved(files=[file])
    assert found.state_dir == Path("/etc/mvm/state")
    assert found.production
    assert not found.autostart


def test_locate_reads_the_file_of_the_current_directory(tmp_path: Path) -> None:
    (tmp_path / "mvm.toml").write_text('runtime = "process"\nrun_dir = "/tmp/r"\n')
    found = locate({}, {"HOME": str(tmp_path)}, tmp_path)
    assert (found.runtime, found.run_dir) == ("process", Path("/tmp/r"))
    assert found.origins["runtime"] == str(tmp_path / "mvm.toml")


def test_a_file_that_others_may_write_is_not_trusted(tmp_path: Path) -> None:
    file = tmp_path / "mvm.toml"
    file.write_text('runtime = "process"\n')
    file.chmod(0o666)
    with pytest.raises(InvalidInput, match="not trusted"):
        locate({}, {"HOME": str(tmp_path)}, tmp_path)


def test_memory_mounts_are_the_writable_tmpfs(tmp_path: Path) -> None:
    spaced = tmp_path / "with space"
    spaced.mkdir()
    table = tmp_path / "mounts"
    table.write_text(
        f"tmpfs {str(spaced).replace(' ', chr(92) + '040')} tmpfs rw,nosuid 0 0\n"
        f"tmpfs {tmp_path} tmpfs ro 0 0\n/dev/vda / ext4 rw 0 0\n"
    )
    assert memory_mounts(table) == (spaced,)
    assert memory_mounts(tmp_path / "absent") == ()


@pytest.mark.parametrize("written", ["", " ", "a\0b"])
def test_a_directory_that_is_no_path_is_refused_wherever_it_is_given(tmp_path: Path, written: str) -> None:
    with pytest.raises(InvalidInput, match="no path"):
        parse_config(tmp_path / "mvm.toml", f"state_dir = {json.dumps(written)}")
    with pytest.raises(InvalidInput, match="no path"):
        locate({"run_dir": written}, {}, tmp_path)


def test_a_home_that_nobody_has_is_a_path_like_any_other(tmp_path: Path) -> None:
    found = locate({"state_dir": "~nobody-of-that-name/x", "run_dir": "/tmp/mvm-none"}, {}, tmp_path)
    assert found.state_dir == tmp_path / "~nobody-of-that-name/x"


@given(
    st.text(max_size=60) | st.from_regex(r"(state_dir|runtime|metrics_port|production|x)\s*=\s*.{0,20}", fullmatch=True)
)
def test_any_text_is_a_configuration_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidInput):
        parse_config(Path("mvm.toml"), text)


def test_where_flakes_are_built_is_set_like_anything_else(tmp_path: Path) -> None:
    assert locate({}, {}, tmp_path).nix_build == "host"
    assert locate({}, {"MVM_NIX_BUILD": "machine"}, tmp_path).nix_build == "machine"
    with pytest.raises(InvalidInput, match=r"nix_build 'cloud' is unknown \(environment MVM_NIX_BUILD\)") as refused:
        locate({}, {"MVM_NIX_BUILD": "cloud"}, tmp_path)
    assert refused.value.hint == "it is one of: host, machine"
