"""What npm's last words mean for a person."""

from __future__ import annotations

import re

from mvm.model.errors import MvmError, Unavailable

_NETWORK = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ERR_SOCKET_TIMEOUT", "ENETUNREACH")
_CERTIFICATE = ("UNABLE_TO_GET_ISSUER_CERT_LOCALLY", "SELF_SIGNED_CERT_IN_CHAIN", "UNABLE_TO_VERIFY_LEAF_SIGNATURE")


def explain(stderr: str, status: int) -> MvmError:
    """The error for an npm that ended with `status`: its own code and reason, and what to do about it."""
    lines = [line.removeprefix("npm error").strip() for line in stderr.splitlines() if line.startswith("npm error")]
    lines = [line for line in lines if line and not line.startswith("A complete log of this run")]
    code = next((line.removeprefix("code ").strip() for line in lines if line.startswith("code ")), "")
    reasons = [line for line in lines if not re.match(r"(code|errno|syscall|network (?!request))\b", line)]
    reason = reasons[0] if reasons else (stderr.strip().splitlines() or ["it said nothing"])[-1]
    message = f"npm could not install OpenClaw ({code or f'status {status}'}): {reason[:300]}"
    if code in _NETWORK:
        return Unavailable(
            message,
            hint="check the network, HTTPS_PROXY and `npm config get registry`, then run it again (downloads are kept)",
        )
    if code in _CERTIFICATE:
        return Unavailable(message, hint="name your certificate authority with NODE_EXTRA_CA_CERTS, then run it again")
    hints = {
        "EINTEGRITY": "a package is not what mvm's lock says: do not use that mirror; try `npm cache verify`",
        "ENOSPC": "the disk is full: free some space, or choose another place with MVM_PROGRAMS_DIR",
        "EACCES": "npm may not write there: check the owner of the programs directory and of ~/.npm",
        "E401": "the npm registry asks for a login: see `npm config get registry`",
        "E403": "the npm registry refuses: see `npm config get registry`",
        "E404": "this npm registry does not have the package: see `npm config get registry`",
    }
    return MvmError(message, hint=hints.get(code, "run it again; npm's full log is in ~/.npm/_logs"))
