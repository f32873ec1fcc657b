"""Frames made by hand, as a guest can make them that is up to no good."""

from __future__ import annotations

import socket
import struct

PORT = 4711
"""UDP port that they come from and go to."""


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ethernet(source: str, target: str, kind: int, payload: bytes) -> bytes:
    return mac(target) + mac(source) + struct.pack("!H", kind) + payload


def udp(source: str, target: str, payload: bytes = b"hello") -> bytes:
    """An IPv4 packet. UDP's own checksum may be left out."""
    datagram = struct.pack("!HHHH", PORT, PORT, 8 + len(payload), 0) + payload
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(datagram), 1, 0, 64, 17, 0, *map(socket.inet_aton, (source, target))
    )
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = 0xFFFF ^ ((total & 0xFFFF) + (total >> 16))
    return head[:10] + struct.pack("!H", checksum) + head[12:] + datagram


def arp(sender_mac: str, sender: str, target: str, *, operation: int = 1) -> bytes:
    return (
        struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
        + mac(sender_mac)
        + socket.inet_aton(sender)
        + bytes(6)
        + socket.inet_aton(target)
    )
