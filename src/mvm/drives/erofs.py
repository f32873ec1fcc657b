"""Small read-only file systems in the format erofs, made in memory: starting a program for them would slow every wake.

The simplest form that every kernel since 5.4 reads: a superblock, compact inodes one after the other, and each file or
directory in whole blocks of its own. No compression, no extended attributes, no times; everything belongs to root.
The same content gives the same bytes.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mvm.model.errors import MvmError

BLOCK = 4096
_BLOCK_BITS = 12
_MAGIC = 0xE0F5E1E2
_SUPERBLOCK_AT = 1024
_SUPERBLOCK = struct.Struct("<IIIBBHQQIIII16s16sI44x")
_INODE = struct.Struct("<HHHHIIIIHHI")
"""A compact one, whose data is in whole blocks (both are zeros in its format)."""
_ENTRY = struct.Struct("<QHBx")
_FIRST_INODE = BLOCK // _INODE.size
"""Inodes are numbered by their place from the beginning of the image; they begin at its second block."""
_REGULAR, _DIRECTORY = 1, 2


@dataclass(eq=False)
class _Node:
    """A file or directory."""

    number: int
    mode: int
    content: bytes = b""
    children: dict[bytes, _Node] = field(default_factory=dict)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def links(self) -> int:
        return 2 + sum(child.is_directory for child in self.children.values()) if self.is_directory else 1


def render(directory: Path) -> bytes:
    """The image of a directory and all below it. Raises `MvmError` for anything that is neither directory nor file."""
    nodes: list[_Node] = []
    root = _read(directory, nodes)
    _list_entries(root, root)
    at = 1 + _blocks(len(nodes) * _INODE.size)
    inodes, contents = [], []
    for node in nodes:
        inodes.append(_inode(node, at))
        contents.append(_whole_blocks(node.content))
        at += _blocks(len(node.content))
    return b"".join([_superblock(inodes=len(nodes), blocks=at), _whole_blocks(b"".join(inodes)), *contents])


def _read(path: Path, nodes: list[_Node]) -> _Node:
    """What is at a path, as nodes numbered in order; parents come before children."""
    with os.scandir(path) as entries:
        listed = sorted(entries, key=lambda entry: os.fsencode(entry.name))
    node = _Node(_FIRST_INODE + len(nodes), path.stat().st_mode)
    nodes.append(node)
    for entry in listed:
        found = entry.stat(follow_symlinks=False)
        if entry.is_dir(follow_symlinks=False):
            child = _read(Path(entry.path), nodes)
        elif entry.is_file(follow_symlinks=False):
            child = _Node(_FIRST_INODE + len(nodes), found.st_mode, Path(entry.path).read_bytes())
            nodes.append(child)
        else:
            raise MvmError(f"'{entry.path}' is neither a file nor a directory: it cannot be on a drive")
        node.children[os.fsencode(entry.name)] = child
    return node


def _list_entries(node: _Node, parent: _Node) -> None:
    """Give every directory its content."""
    entries = sorted([(b".", node), (b"..", parent), *node.children.items()], key=lambda entry: entry[0])
    blocks = [_directory_block(block) for block in _split(entries)]
    node.content = b"".join([_whole_blocks(block) for block in blocks[:-1]] + blocks[-1:])
    for child in node.children.values():
        if child.is_directory:
            _list_entries(child, node)


def _split(entries: list[tuple[bytes, _Node]]) -> Iterator[list[tuple[bytes, _Node]]]:
    """As many entries as a block holds, each time."""
    block: list[tuple[bytes, _Node]] = []
    room = BLOCK
    for name, node in entries:
        size = _ENTRY.size + len(name)
        if size > room:
            yield block
            block, room = [], BLOCK
        block.append((name, node))
        room -= size
    yield block


def _directory_block(entries: list[tuple[bytes, _Node]]) -> bytes:
    """Entries, then their names, each from where its entry says to where the next one begins."""
    name_at = len(entries) * _ENTRY.size
    packed = []
    for name, node in entries:
        packed.append(_ENTRY.pack(node.number, name_at, _DIRECTORY if node.is_directory else _REGULAR))
        name_at += len(name)
    return b"".join(packed + [name for name, _ in entries])


def _inode(node: _Node, block: int) -> bytes:
    number = node.number - _FIRST_INODE + 1
    return _INODE.pack(0, 0, node.mode & 0xFFFF, node.links, len(node.content), 0, block, number, 0, 0, 0)


def _superblock(*, inodes: int, blocks: int) -> bytes:
    """The first block of the image."""
    no_checksum, no_features, seconds, nanoseconds = 0, 0, 0, 0
    fields = _SUPERBLOCK.pack(
        *(_MAGIC, no_checksum, no_features, _BLOCK_BITS, 0, _FIRST_INODE, inodes, seconds, nanoseconds, blocks),
        *(0, 0, bytes(16), bytes(16), no_features),
    )
    return _whole_blocks(bytes(_SUPERBLOCK_AT) + fields)


def _blocks(size: int) -> int:
    return -(-size // BLOCK)


def _whole_blocks(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)
