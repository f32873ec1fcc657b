"""QEMU's command line: a pure function of what an instance is given.

What is on it besides the drives' files, the network's descriptor and the address decides whether a snapshot fits:
`layout` names that part. Everything that QEMU works with is passed as an open file; it opens no path of an instance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from mvm.drives.table import DATA, Drive, Mode
from mvm.runtime.base import NO_LIMITS, ChannelKind, Limits
from mvm.runtime.qemu.accelerator import Accelerator

LAYOUT = 1
"""Grows with every change of this module after which an earlier snapshot must not be restored."""
CHANNEL_PORT = "org.mvm.mux"
"""Name of the virtio-serial port that carries the control channel."""
TCG_CODE_MIB = 128
"""Translated code that is kept. QEMU's default costs 400 MiB more; half of this is half as fast (facts, section 9)."""
TCG_CPU = "Nehalem-v1,+smep,+smap,+rdrand,+umip,+rdtscp,+fsgsbase"
"""Cryptography is twice as fast as with `max`, whose instructions are dear to emulate (facts, section 9)."""
MACHINE = "microvm,acpi=on,pit=off,pic=off,rtc=on,isa-serial=on,pcie=off,usb=off,memory-backend=ram,dump-guest-core=off"
KERNEL_PARAMETERS = (
    "console=ttyS0 quiet loglevel=1 reboot=t panic=1 tsc=reliable no_timer_check noreplace-smp cryptomgr.notests "
    "random.trust_cpu=on init_on_free=1"
)
EMULATED_PARAMETERS = "mitigations=off"
"""There is no speculation in an emulated processor."""
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
NO_OFFLOADS = ",".join(
    f"{feature}=off"
    for feature in (
        *("csum", "gso", "guest_csum", "guest_tso4", "guest_tso6", "guest_ecn", "guest_ufo", "host_tso4", "host_tso6"),
        *("host_ecn", "host_ufo", "mrg_rxbuf", "ctrl_guest_offloads"),
    )
)
"""What a device's other end can do is part of a snapshot: without offloads it restores with any other end."""


@dataclass(frozen=True, kw_only=True)
class Descriptors:
    """Open files by number, as the new process inherits them."""

    monitor: int
    channel: int
    """The socket that carries the multiplexed channel; with vsock the kernel's device for it."""
    console: int
    ram: int
    kernel: int
    initrd: int
    drives: Mapping[str, tuple[int, ...]]
    """Serial of the drive -> its image, opened for reading, and for writing too when the guest may write."""
    tap: int | None = None

    def all(self) -> list[int]:
        """Every number."""
        found = [
            self.monitor,
            self.channel,
            self.console,
            self.ram,
            self.kernel,
            self.initrd,
            *(number for opened in self.drives.values() for number in opened),
        ]
        return found if self.tap is None else [*found, self.tap]


class Network(StrEnum):
    """What the other end of the network device is."""

    HOST = "host"
    """The host's network, by an open TAP; nothing without one."""
    USER = "user"
    """A network that QEMU makes up, from which it connects outwards as an ordinary program."""
    USER_CLOSED = "user-closed"
    """The same, out of which nothing is let."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What the guest's hardware is made of."""

    accelerator: Accelerator
    vcpus: int
    mem_mib: int
    drives: tuple[Drive, ...]
    kernel: Path
    initrd: Path
    parameters: str = ""
    """What the image wants on the kernel's command line."""
    tsc_khz: int | None = None
    network: Network = Network.HOST
    channel: ChannelKind = ChannelKind.VIRTIO_SERIAL
    limits: Limits = NO_LIMITS
    """Of its drives. They are QEMU's own affair: no guest knows them, and no snapshot has them."""


def cpu_model(accelerator: Accelerator) -> str:
    """The processor that the guest sees."""
    return "host" if accelerator.is_hardware else TCG_CPU


def kernel_line(hardware: Hardware) -> str:
    """The kernel's command line. Stays far below 2048 bytes, beyond which the kernel hangs silently."""
    parts = [KERNEL_PARAMETERS]
    if not hardware.accelerator.is_hardware:
        parts.append(EMULATED_PARAMETERS)
        if hardware.tsc_khz is not None:
            parts.append(f"tsc_early_khz={hardware.tsc_khz}")
    return " ".join([*parts, *([hardware.parameters] if hardware.parameters else [])])


def layout(hardware: Hardware) -> str:
    """Names the hardware as the guest's memory knows it: equal for two command lines between which it can move."""
    drives = ",".join(f"{drive.serial}:{drive.mode}" for drive in hardware.drives)
    parts = [LAYOUT, MACHINE, cpu_model(hardware.accelerator), hardware.vcpus, hardware.mem_mib, drives, NO_OFFLOADS]
    if hardware.network is not Network.HOST:  # its state is in the snapshot too
        parts.append(Network.USER)
    if hardware.channel is not ChannelKind.VIRTIO_SERIAL:
        parts.append(hardware.channel)
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]


def command(
    binary: str,
    hardware: Hardware,
    files: Descriptors,
    *,
    name: str,
    mac: str,
    sandbox: bool,
    incoming: bool,
    cid: int | None = None,
) -> list[str]:
    """The arguments of a QEMU that boots, or with `incoming` waits for a snapshot. `cid` is for a channel by vsock."""
    accelerator = hardware.accelerator
    tcg = "" if accelerator.is_hardware else f",thread=multi,tb-size={TCG_CODE_MIB}"
    # fmt: off
    arguments = [
        binary, "-name", name, "-M", MACHINE, "-accel", f"{accelerator}{tcg}", "-cpu", cpu_model(accelerator),
        "-smp", str(hardware.vcpus), "-m", str(hardware.mem_mib),
        "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        "-kernel", f"/proc/self/fd/{files.kernel}", "-initrd", f"/proc/self/fd/{files.initrd}",
        "-append", kernel_line(hardware),
        "-object",
        f"memory-backend-file,id=ram,size={hardware.mem_mib}M,mem-path=/proc/self/fd/{files.ram},share=on",
        "-chardev", f"socket,id=monitor,fd={files.monitor},server=on,wait=off",
        "-mon", "chardev=monitor,mode=control",
        "-chardev", f"socket,id=console,fd={files.console},server=on,wait=off", "-serial", "chardev:console",
    ]
    for number, drive in enumerate(hardware.drives, 1):
        arguments += _drive(drive, number, files.drives[drive.serial], hardware.limits)
    arguments += [
        *_channel(hardware, files, cid),
        "-device", "virtio-rng-device",
        "-netdev", _network(hardware, files),
        "-device", f"virtio-net-device,netdev=net,mac={mac},{NO_OFFLOADS}",
        "-device", "virtio-balloon-device,free-page-reporting=on",
    ]
    # fmt: on
    if sandbox:
        arguments += ["-sandbox", SANDBOX]
    if incoming:
        arguments += ["-incoming", "defer"]
    return arguments


def _channel(hardware: Hardware, files: Descriptors, cid: int | None) -> list[str]:
    if hardware.channel is ChannelKind.VSOCK:
        return ["-device", f"vhost-vsock-device,guest-cid={cid},vhostfd={files.channel}"]
    return [
        *("-device", "virtio-serial-device,max_ports=2"),
        *("-chardev", f"socket,id=mux,fd={files.channel},server=on,wait=off"),
        *("-device", f"virtserialport,chardev=mux,nr=1,name={CHANNEL_PORT}"),
    ]


def _network(hardware: Hardware, files: Descriptors) -> str:
    if hardware.network is not Network.HOST:
        restrict = "on" if hardware.network is Network.USER_CLOSED else "off"
        return f"user,id=net,ipv6=off,restrict={restrict}"
    return "hubport,id=net,hubid=0" if files.tap is None else f"tap,id=net,fd={files.tap}"


def _drive(drive: Drive, number: int, descriptors: tuple[int, ...], limits: Limits) -> list[str]:
    """A drive whose image is an open file: QEMU takes the one of a set that is opened as it needs it.

    QEMU's locks are left out: the host rewrites images that are open, and after a snapshot QEMU would lock itself out.
    """
    mode = "readonly=on" if drive.mode is Mode.READ_ONLY else "readonly=off"
    extra = ",discard=unmap" if drive is DATA else ""
    if limits.disk_bytes:
        extra += f",throttling.bps-total={limits.disk_bytes}"
    if limits.disk_ops:
        extra += f",throttling.iops-total={limits.disk_ops}"
    return [
        *(word for descriptor in descriptors for word in ("-add-fd", f"fd={descriptor},set={number}")),
        "-drive",
        f"id={drive.serial},if=none,file=/dev/fdset/{number},format=raw,{mode},file.locking=off{extra}",
        "-device",
        f"virtio-blk-device,drive={drive.serial},serial={drive.serial}",
    ]
