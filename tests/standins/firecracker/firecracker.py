"""`firecracker`, from its command line to its exit status: started by the program that `install` wrote."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from tests.standins.firecracker import http, rules
from tests.standins.firecracker.http import Request, Response
from tests.standins.firecracker.jail import Jail, listening
from tests.standins.firecracker.rules import INSTANCE_ID, Call, Fault
from tests.standins.firecracker.settings import Faults, Journal, Settings
from tests.standins.firecracker.vmm import Fatal, Vmm, files_of_last_snapshot

JAIL_VARIABLE = "MVM_STANDIN_JAIL"
"""Set by the stand-in jailer only: root, uid and gid, which a real one would have made true."""
BAD_ARGUMENTS = 153
BAD_CONFIGURATION = 152
FAILED = 1


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"Arguments parsing error: {message}", file=sys.stderr)
        raise SystemExit(BAD_ARGUMENTS)


def parser() -> argparse.ArgumentParser:
    made = _Parser(prog="firecracker", add_help=False, allow_abbrev=False)
    made.add_argument("--api-sock", default="/run/firecracker.socket")
    made.add_argument("--id", default="anonymous-instance")
    for name in ("config-file", "metadata", "log-path", "level", "module", "metrics-path", "seccomp-filter"):
        made.add_argument(f"--{name}")
    for name in ("start-time-us", "start-time-cpu-us", "parent-cpu-time-us"):
        made.add_argument(f"--{name}", type=int)
    made.add_argument("--http-api-max-payload-size", type=int, default=51_200)
    made.add_argument("--mmds-size-limit", type=int)
    for name in ("no-api", "no-seccomp", "boot-timer", "show-level", "show-log-origin", "enable-pci", "version"):
        made.add_argument(f"--{name}", action="store_true")
    made.add_argument("--describe-snapshot")
    return made


def main(settings: Settings, arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    if options.version:
        print(f"Firecracker v{settings.version}\n")
        return 0
    if not INSTANCE_ID.fullmatch(options.id):
        print(f"Invalid instance ID: {options.id}", file=sys.stderr)
        return BAD_ARGUMENTS
    if options.level and options.level.lower() not in [level.lower() for level in rules.LEVELS]:
        print(f"Logger error: invalid level {options.level}", file=sys.stderr)
        return BAD_ARGUMENTS
    if options.no_api or options.config_file:
        print("the stand-in is configured through its API only", file=sys.stderr)
        return BAD_CONFIGURATION
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    return asyncio.run(_Process(settings, options).run())


class _Process:
    def __init__(self, settings: Settings, options: argparse.Namespace) -> None:
        self._settings = settings
        self._options = options
        given = json.loads(os.environ.get(JAIL_VARIABLE, "null"))
        self._jail = Jail.none() if given is None else Jail(root=Path(given[0]), uid=given[1], gid=given[2])
        self._journal = Journal(settings, options.id)
        self._faults = Faults(settings, options.id)
        self._answering = asyncio.Lock()

    async def run(self) -> int:
        self._journal.note("start", arguments=sys.argv[1:], root=str(self._jail.root), uid=self._jail.uid)
        self._vmm = Vmm(self._settings, self._jail, self._options.id, self._journal)
        try:
            server = await self._listen()
            self._log_to(self._options.log_path, "log_path", "/logger")
        except Fault as fault:
            print(f"RunWithApi error: {fault.message}", file=sys.stderr)
            self._journal.note("exit", reason=fault.message)
            return FAILED
        status = await self._vmm.ended
        server.close()
        self._journal.note("exit", reason="the guest ended" if status == 0 else "a load failed", status=status)
        return status

    def _log_to(self, path: str | None, name: str, _call: str) -> None:
        if path is not None:
            self._vmm.on_logger({name: path})

    async def _listen(self) -> asyncio.Server:
        path = self._jail.may_bind(self._options.api_sock, "Failed to open the API socket")
        listener = listening(path)
        self._jail.give(path)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            limit = self._options.http_api_max_payload_size
            await http.serve(reader, writer, answer=self._answer, limit=limit)

        return await asyncio.start_unix_server(serve, sock=listener)

    async def _answer(self, request: Request) -> Response:
        """One request after the other, whoever asks."""
        async with self._answering:
            before = self._vmm.state
            faults = self._faults.due(request.method, request.path)
            for fault in faults:
                self._journal.note("fault", what=fault.what, method=request.method, path=request.path)
                if fault.what == "delay":
                    await asyncio.sleep(fault.seconds)
                elif fault.what == "die":
                    os.kill(os.getpid(), signal.SIGKILL)
            body, response, fatal = await self._respond(request, [fault.what for fault in faults])
            self._journal.note(
                "request",
                method=request.method,
                path=request.path,
                body=body,
                state=before,
                status=response.status,
                answer=response.body,
            )
            if any(fault.what == "die_after" for fault in faults):
                os.kill(os.getpid(), signal.SIGKILL)
        if fatal:
            asyncio.get_running_loop().call_soon(self._fail)
        return response

    def _fail(self) -> None:
        if not self._vmm.ended.done():
            asyncio.get_running_loop().call_later(0.02, self._vmm.ended.set_result, FAILED)  # after the answer

    async def _respond(self, request: Request, faults: list[str]) -> tuple[Any, Response, bool]:
        """The body as it was understood, the answer, and whether the process ends with it."""
        body: Any = None
        try:
            call, body = self._understood(request)
            if "error" in faults:
                raise Fault("an injected fault")
            answer = await self._vmm.call(call, body or {})
            self._spoil(call, body, faults)
        except Fault as fault:
            return body, Response(status=fault.status, body={"fault_message": fault.message}), False
        except Fatal as fatal:
            return body, Response(status=400, body={"fault_message": fatal.fault.message}), True
        if answer is None:
            return body, Response(status=204), False
        return body, Response(status=200, body=answer), False

    def _understood(self, request: Request) -> tuple[Call, Any]:
        if request.method == "GET" and request.body:
            raise Fault("GET request cannot have a body.")
        if request.method in ("PUT", "PATCH") and not request.body:
            raise Fault(f"Empty {request.method} request.")
        call, identity = rules.find(request.method, request.path, self._settings.numbers)
        if call.body is None:
            return call, None
        try:
            body = json.loads(request.body)
        except ValueError as error:
            raise Fault(f"An error occurred when deserializing the json body of a request: {error}.") from None
        limit = self._options.mmds_size_limit or self._options.http_api_max_payload_size
        if call.free_form and len(request.body) > limit:
            raise Fault("The MMDS patch request doesn't fit.", 413)
        rules.check_body(call, identity, body, self._settings.numbers)
        return call, {name: value for name, value in body.items() if value is not None}

    def _spoil(self, call: Call, body: Any, faults: list[str]) -> None:
        """Damage that a test asked for, unseen by whoever gets the answer."""
        if call.name == "create":
            state, memory = files_of_last_snapshot(body, self._jail)
            if "truncate" in faults:
                os.truncate(memory, memory.stat().st_size // 2)
            if "truncate_state" in faults:
                os.truncate(state, state.stat().st_size // 2)
        if "hang_guest" in faults:
            self._vmm.hang()
