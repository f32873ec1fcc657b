"""Parts of the first process that can be looked at without being one."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from mvm.guest import init, swap


def test_only_the_first_process_of_a_machine_can_be_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert init.main({}) == 1
    assert "first process" in capsys.readouterr().err


def test_services_get_nothing_from_the_kernels_command_line() -> None:
    given = {"PATH": "/evil", "LD_PRELOAD": "x", "MVM_GUEST_ROOT": "/other", "MVM_LOG": "debug", "HOME": "/"}
    assert init.service_environment(given) == {"LANG": "C.UTF-8", "MVM_LOG": "debug", "PATH": init.DEFAULT_PATH}


def test_every_place_is_mounted_after_what_it_lies_in() -> None:
    places = [place for _, place, _, _, _ in init.MOUNTS]
    for at, place in enumerate(places):
        for parent in Path(place).parents:
            assert str(parent) not in places[at + 1 :]


def test_a_swap_device_says_how_many_pages_it_has() -> None:
    page = swap.header(64 * 4096)
    assert len(page) == 4096
    assert page.endswith(b"SWAPSPACE2")
    assert struct.unpack_from("<II", page, 1024) == (1, 63)


def test_swap_is_as_large_as_memory_and_compressed_as_well_as_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Path] = []
    monkeypatch.setattr(swap, "swap_on", used.append)
    zram = tmp_path / "zram0"
    zram.mkdir()
    (zram / "comp_algorithm").write_text("lzo [lzo-rle] lz4 zstd\n")
    (tmp_path / "meminfo").write_text("MemTotal:        1000003 kB\nMemFree: 1 kB\n")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/zram0").touch()
    swap.begin(tmp_path, tmp_path / "dev", tmp_path)
    size = 1000003 * 1024 // 4096 * 4096
    assert (zram / "comp_algorithm").read_text() == "zstd\n"
    assert (zram / "disksize").read_text() == f"{size}\n"
    assert (tmp_path / "dev/zram0").read_bytes() == swap.header(size)
    assert used == [tmp_path / "dev/zram0"]


def test_without_the_module_there_is_no_swap(tmp_path: Path) -> None:
    swap.begin(tmp_path, tmp_path, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_only_a_machine_of_its_own_is_prepared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert init.prepare({"MVM_GUEST_ROOT": str(tmp_path)}) == 1
    assert "machine of its own" in capsys.readouterr().err
