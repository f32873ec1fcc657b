"""Rules into the kernel, and whether they are still there.

A replacement is one transaction: packets meet either the old rules or the new ones. The kernel counts changes of
anybody's rules, so a look whether ours are untouched costs microseconds as long as nobody changed anything.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
import socket
import struct

from mvm.model.errors import MvmError, Refused, TimedOut, Unavailable
from mvm.network.rules import TABLES, removal

NFT_LIMIT_SECONDS = 30.0

_NETLINK_NETFILTER = 12
_NFT_MSG_NEWGEN = (10 << 8) | 15
_NFT_MSG_GETGEN = (10 << 8) | 16
_NFTA_GEN_ID = 1
_NLM_F_REQUEST = 1


async def nft(*arguments: str, text: str | None = None) -> str:
    """Run `nft` and return what it prints. Raises `MvmError` with its first line of complaint."""
    program = shutil.which("nft") or shutil.which("nft", path="/usr/sbin:/sbin")
    if program is None:
        raise Unavailable("there is no program 'nft'", hint="install the package nftables")
    process = await asyncio.create_subprocess_exec(
        program,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(NFT_LIMIT_SECONDS):
            output, complaint = await process.communicate((text or "").encode())
    except TimeoutError:
        raise TimedOut(f"nft {' '.join(arguments)} did not end within {NFT_LIMIT_SECONDS:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        first = complaint.decode(errors="replace").strip().partition("\n")[0]
        if "not permitted" in first:
            raise Refused(
                "the rules of the network may not be set", hint="run the agent as root, or with CAP_NET_ADMIN"
            )
        raise MvmError(f"nft {' '.join(arguments)} failed: {first[:300]}", hint="`mvm doctor` says what is missing")
    return output.decode()


def generation() -> int:
    """Number of the last change of any rules in this network namespace. Raises `OSError` where they cannot be asked."""
    payload = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)
    message = struct.pack("=IHHII", 16 + len(payload), _NFT_MSG_GETGEN, _NLM_F_REQUEST, 1, 0) + payload
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as netlink:
        netlink.send(message)
        answer = netlink.recv(4096)
    kind = struct.unpack_from("=4xH", answer)[0]
    length, attribute = struct.unpack_from("=HH", answer, 20)
    if kind != _NFT_MSG_NEWGEN or attribute != _NFTA_GEN_ID or length != 8:
        raise OSError("the kernel does not tell its generation of rules")
    number: int = struct.unpack_from(">I", answer, 24)[0]
    return number


async def installed_digest() -> str | None:
    """Digest of mvm's tables as they are in the kernel now; None when one of them is not there."""
    digest = hashlib.sha256()
    for family, name in TABLES:
        try:
            digest.update((await nft("--stateless", "--numeric", "list", "table", family, name)).encode())
        except MvmError as error:
            if "No such file" in error.message:
                return None
            raise
    return digest.hexdigest()


async def owner_of_rules() -> str | None:
    """Who put mvm's rules that are in the kernel now, as `render` noted it; None when there are none."""
    family, name = TABLES[0]
    try:
        text = await nft("--terse", "list", "table", family, name)
    except MvmError as error:
        if "No such file" in error.message:
            return None
        raise
    found = re.search(r'^\s*comment "([^"]*)"', text, re.MULTILINE)
    return found[1] if found else ""


class Rules:
    """mvm's tables in this network namespace."""

    def __init__(self) -> None:
        self._text: str | None = None
        self._digest: str | None = None
        self._generation: int | None = None

    async def put(self, text: str) -> bool:
        """Have exactly these rules in force. True when something had to be changed. On an error the old ones stay."""
        if text == self._text and await self.settle():
            return False
        await nft("-f", "-", text=text)
        self._text = text
        # The generation first: a change by somebody else between the two is then looked into, not missed.
        self._generation = generation()
        self._digest = await installed_digest()
        return True

    def surely_intact(self) -> bool:
        """True when nobody changed any rules since they were looked at last: one question to the kernel."""
        return self._generation is not None and generation() == self._generation

    async def intact(self) -> bool:
        """True when the rules are those that were put, whatever others did to theirs."""
        return self._digest is not None and (self.surely_intact() or await installed_digest() == self._digest)

    async def settle(self) -> bool:
        """The same, and what others did to theirs so far makes them `surely_intact` no less from now on."""
        now = None if self._digest is None else generation()
        if not await self.intact():
            return False
        self._generation = now
        return True

    async def remove(self) -> None:
        """Remove both tables. Idempotent."""
        await nft("-f", "-", text=removal())
        self._text = self._digest = self._generation = None
