"""Every runtime, the guest and the images rely on this order."""

from mvm.drives.table import CONFIG, DATA, DRIVES, ROOTFS, SECRETS, Mode, data_disk_mib, drives_of
from mvm.model.roles import Role


def test_the_order_and_the_mount_points_are_those_of_the_contract() -> None:
    assert [(d.device, d.serial, d.mode.value, d.mount_point) for d in DRIVES] == [
        ("vda", "rootfs", "ro", "/"),
        ("vdb", "data", "rw", "/data"),
        ("vdc", "secrets", "ro", "/run/secrets"),
        ("vdd", "config", "ro", "/etc/mvm-config"),
    ]


def test_only_the_data_drive_is_writable_and_only_secrets_must_stay_in_memory() -> None:
    assert [d for d in DRIVES if d.mode is Mode.READ_WRITE] == [DATA]
    assert [d for d in DRIVES if d.memory_only] == [SECRETS]


def test_a_builder_gets_neither_configuration_nor_secrets() -> None:
    assert drives_of(Role.BUILDER) == (ROOTFS, DATA)
    assert drives_of(Role.GATEWAY) == (ROOTFS, DATA, SECRETS, CONFIG)


def test_a_pool_that_names_no_data_disk_gets_a_gibibyte() -> None:
    assert data_disk_mib(0) == 1024
    assert data_disk_mib(2048) == 2048
