"""What a microVM is made of before it starts: each call that configures, and each that asks."""

from __future__ import annotations

import os
from typing import Any

from tests.standins.firecracker.drives import Drive
from tests.standins.firecracker.jail import Jail
from tests.standins.firecracker.network import open_tap
from tests.standins.firecracker.rules import Fault
from tests.standins.firecracker.settings import Journal, Settings
from tests.standins.firecracker.vsock import Vsock

MOST_VCPUS = 32
MOST_PARAMETERS = 2048


class Configuration:
    """Each `on_<name>` is the call of that name in `rules.CALLS`; it raises `Fault` for what Firecracker refuses."""

    def __init__(self, settings: Settings, jail: Jail, identity: str, journal: Journal) -> None:
        self._settings = settings
        self._jail = jail
        self._id = identity
        self._journal = journal
        self.state = "Not started"
        self._machine: dict[str, Any] = {"vcpu_count": 1, "mem_size_mib": 128, "smt": False, "track_dirty_pages": False,
                                         "huge_pages": "None"}  # fmt: skip
        self._boot: dict[str, Any] | None = None
        self._drives: dict[str, Drive] = {}
        self._networks: dict[str, dict[str, Any]] = {}
        self._taps: dict[str, int] = {}
        self._plain: dict[str, dict[str, Any]] = {}
        """Configuration of devices of which there is one, and that do nothing here."""
        self.buckets: dict[str, list[int]] = {}
        """Size and time of each bucket that limits something, as `<device>.<id>.<limiter>.<bucket>`."""
        self._vsock: Vsock | None = None
        self._mmds: dict[str, Any] | None = None
        self._serial: str | None = None

    # What is asked

    def on_describe(self, _: dict[str, Any]) -> dict[str, str]:
        return {
            "id": self._id,
            "state": self.state,
            "vmm_version": self._settings.version,
            "app_name": "Firecracker",
        }

    def on_version(self, _: dict[str, Any]) -> dict[str, str]:
        return {"firecracker_version": self._settings.version}

    def on_machine(self, _: dict[str, Any]) -> dict[str, Any]:
        return self._machine

    def on_export(self, _: dict[str, Any]) -> dict[str, Any]:
        return {
            "machine-config": self._machine,
            "drives": [self._described(drive) for drive in self._drives.values()],
            "network-interfaces": list(self._networks.values()),
            **({"boot-source": self._boot} if self._boot else {}),
            **({"vsock": {"guest_cid": self._vsock.cid, "uds_path": self._vsock.named}} if self._vsock else {}),
            **{name: self._plain[name] for name in ("balloon", "entropy", "logger", "metrics") if name in self._plain},
        }

    @staticmethod
    def _described(drive: Drive) -> dict[str, Any]:
        return {
            "drive_id": drive.drive_id,
            "path_on_host": drive.named,
            "is_read_only": drive.read_only,
            "is_root_device": drive.root_device,
        }

    def on_balloon(self, _: dict[str, Any]) -> dict[str, Any]:
        return self._plain_one("balloon", "Balloon config error: Device not found.")

    def on_balloon_statistics(self, _: dict[str, Any]) -> dict[str, Any]:
        balloon = self._plain_one("balloon", "Balloon config error: Device not found.")
        if not balloon.get("stats_polling_interval_s"):
            raise Fault("Balloon config error: The statistics were not enabled before starting.")
        pages = balloon["amount_mib"] << 8
        return {"target_pages": pages, "actual_pages": pages, "target_mib": pages >> 8, "actual_mib": pages >> 8}

    def _plain_one(self, name: str, missing: str) -> dict[str, Any]:
        if name not in self._plain:
            raise Fault(missing)
        return self._plain[name]

    # Before the start

    def on_machine_config(self, body: dict[str, Any]) -> None:
        self._machine = self._checked_machine({"smt": False, "track_dirty_pages": False, "huge_pages": "None"} | body)

    def on_machine_change(self, body: dict[str, Any]) -> None:
        if not body:
            raise Fault("Empty PATCH request.")
        self._machine = self._checked_machine(self._machine | body)

    def _checked_machine(self, wanted: dict[str, Any]) -> dict[str, Any]:
        vcpus, mib = wanted["vcpu_count"], wanted["mem_size_mib"]
        if not 1 <= vcpus <= MOST_VCPUS or (wanted["smt"] and vcpus != 1 and vcpus % 2):
            raise Fault("The vCPU number is invalid! The vCPU number can only be 1 or an even number when SMT is on.")
        if mib == 0 or (wanted["huge_pages"] == "2M" and mib % 2):
            raise Fault("The memory size (MiB) is invalid.")
        return wanted

    def on_boot_source(self, body: dict[str, Any]) -> None:
        descriptors = [self._jail.open(body["kernel_image_path"], os.O_RDONLY, "The kernel file cannot be opened")]
        try:
            if body.get("initrd_path") is not None:
                descriptors.append(
                    self._jail.open(body["initrd_path"], os.O_RDONLY, "The initrd file cannot be opened")
                )
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        if len(body.get("boot_args") or "") > MOST_PARAMETERS:
            raise Fault("The kernel command line is invalid: it is too long")
        self._boot = body

    def on_drive(self, body: dict[str, Any]) -> None:
        self._limit("drive", body["drive_id"], body, "rate_limiter", boot=True)
        drive = Drive.open(self._jail, body)
        others = [other for name, other in self._drives.items() if name != drive.drive_id]
        if drive.root_device and any(other.root_device for other in others):
            drive.close()
            raise Fault("A root block device already exists!")
        self._attach(drive)

    def _limit(self, device: str, name: str, body: dict[str, Any], limiter: str, *, boot: bool = False) -> None:
        """Take over the buckets that a body names. One of nothing is none: it lifts a limit, and sets none at boot."""
        given = body.get(limiter) or {}
        for kind in ("bandwidth", "ops"):
            key = f"{device}.{name}.{limiter}.{kind}"
            if boot:
                self.buckets.pop(key, None)
            bucket = given.get(kind)
            if bucket is None:
                continue
            if bucket["size"] and bucket["refill_time"]:
                self.buckets[key] = [bucket["size"], bucket["refill_time"]]
            elif boot or bucket["size"] or bucket["refill_time"]:
                self.violation(f"a bucket was to limit something and limits nothing: {bucket}")
            else:
                self.buckets.pop(key, None)

    def _attach(self, drive: Drive) -> None:
        if (former := self._drives.get(drive.drive_id)) is not None:
            former.close()
        if (problem := drive.claim()) is not None:
            self.violation(problem)
        self._drives[drive.drive_id] = drive

    def on_network(self, body: dict[str, Any]) -> None:
        for name in ("rx_rate_limiter", "tx_rate_limiter"):
            self._limit("network", body["iface_id"], body, name, boot=True)
        mac = body.get("guest_mac")
        for name, other in self._networks.items():
            if mac is not None and other.get("guest_mac") == mac and name != body["iface_id"]:
                raise Fault(f"The MAC address is already in use: {mac}")
        if (former := self._taps.pop(body["iface_id"], None)) is not None:
            os.close(former)
        self._taps[body["iface_id"]] = open_tap(body["host_dev_name"], self._jail)
        self._networks[body["iface_id"]] = body

    def on_vsock(self, body: dict[str, Any]) -> None:
        if self._vsock is not None:
            self._vsock.close()
            self._vsock.path.unlink(missing_ok=True)
        self._vsock = Vsock(self._jail, body["uds_path"], body["guest_cid"])

    def on_balloon_config(self, body: dict[str, Any]) -> None:
        self._plain["balloon"] = body

    def on_entropy(self, body: dict[str, Any]) -> None:
        self._plain["entropy"] = body

    def on_serial(self, body: dict[str, Any]) -> None:
        self._serial = body.get("serial_out_path")

    def on_logger(self, body: dict[str, Any]) -> None:
        self._once("logger", body, "log_path")

    def on_metrics(self, body: dict[str, Any]) -> None:
        self._once("metrics", body, "metrics_path")

    def _once(self, name: str, body: dict[str, Any], where: str) -> None:
        if name in self._plain and where in body:
            raise Fault(f"The {name} was already initialized.")
        if body.get(where) is not None:
            path = self._jail.path(body[where])
            if path.exists():
                os.close(self._jail.open(body[where], os.O_RDWR, f"The {name} file cannot be opened"))
            else:
                os.close(self._jail.create(body[where], f"The {name} file cannot be opened"))
        self._plain[name] = self._plain.get(name, {}) | body

    def on_mmds_config(self, body: dict[str, Any]) -> None:
        for name in body["network_interfaces"] or [""]:
            if name not in self._networks:
                raise Fault(f"MMDS config: the network interface {name!r} is invalid")
        self._mmds = self._mmds or {}

    def on_mmds_put(self, body: dict[str, Any]) -> None:
        self._mmds = body

    def on_mmds_patch(self, body: dict[str, Any]) -> None:
        if self._mmds is None:
            raise Fault("The MMDS data store is not initialized.")
        self._mmds = self._mmds | body

    def on_mmds(self, _: dict[str, Any]) -> dict[str, Any]:
        return self._mmds or {}

    def violation(self, what: str) -> None:
        """Something that Firecracker would not have noticed, and that must not happen."""
        self._journal.note("violation", what=what)
