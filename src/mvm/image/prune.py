"""Which files of OpenClaw's installation a guest needs (facts/OPENCLAW.md, section 1).

Left out is only what no program reads at run time: maps, type declarations, documentation, and binaries for other
platforms. OpenClaw reads its own `docs/reference/templates` in every turn, and the texts of its skills.
"""

from __future__ import annotations

import re

_UNREAD = (".map", ".d.ts", ".d.mts", ".d.cts", ".tsbuildinfo", ".flow")
_TEXTS = (".md", ".markdown")
_TEXT_PLACES = re.compile(r"(^|/)(skills|dist|templates)/")
_PACKAGES = ("@types", "@trycua", "playwright-core", "chrome-devtools-mcp")
"""Packages that only a browser on the same machine makes use of, and declarations."""
_OPENCLAW_DOCS = "openclaw/docs/"
_TEMPLATES = "openclaw/docs/reference/templates"
_CONTROL_UI = "openclaw/dist/control-ui"
_FOREIGN = re.compile(r"(^|[-_./])(darwin|win32|windows|android|freebsd|musl|arm64|arm|armhf|gnueabihf|ia32)([-_./]|$)")
_BINARIES = (".node", ".dll", ".dylib", ".exe", ".so")


def keeps(relative: str, is_directory: bool) -> bool:
    """Whether an entry of `node_modules` goes into the image; `relative` is its path there."""
    if is_directory:
        return _keeps_directory(f"{relative}/")
    if relative.startswith(_OPENCLAW_DOCS):
        return relative.startswith(f"{_TEMPLATES}/")
    lower = relative.lower()
    if lower.endswith(_TEXTS):
        return bool(_TEXT_PLACES.search(relative))
    if lower.endswith(_BINARIES):
        return not _FOREIGN.search(lower)
    return not lower.endswith(_UNREAD)


def _keeps_directory(path: str) -> bool:
    if path.startswith(tuple(f"{package}/" for package in _PACKAGES)) or path.startswith(f"{_CONTROL_UI}/"):
        return False
    if path.startswith(_OPENCLAW_DOCS):
        return f"{_TEMPLATES}/".startswith(path) or path.startswith(f"{_TEMPLATES}/")
    return True
