"""The admin API of the model stand-in: rules, the journal and keys, under `/-/admin/` with a bearer token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from mvm.demo.loopback import read_object, require_bearer
from mvm.demo.model_provider.script import Rule

if TYPE_CHECKING:
    from mvm.demo.model_provider.standin import ModelStandIn


def add_routes(app: web.Application, standin: ModelStandIn) -> None:
    """Serve the admin API in `app`."""

    async def add_rule(request: web.Request) -> web.Response:
        require_bearer(request, standin.admin_token)
        try:
            standin.rules.append(Rule.parse(await read_object(request)))
        except (ValueError, TypeError) as problem:
            raise web.HTTPBadRequest(text=str(problem)) from problem
        return web.json_response({"rules": len(standin.rules)})

    async def clear_rules(request: web.Request) -> web.Response:
        require_bearer(request, standin.admin_token)
        standin.rules.clear()
        return web.json_response({"rules": 0})

    async def journal(request: web.Request) -> web.Response:
        """Calls in order; `containing`, `model` and `turns=1` narrow them."""
        require_bearer(request, standin.admin_token)
        query = request.query
        choose = standin.journal.turns if query.get("turns") == "1" else standin.journal.select
        calls = choose(containing=query.get("containing", ""), model=query.get("model"))
        return web.json_response({"calls": [call.to_json() for call in calls]})

    async def keys(request: web.Request) -> web.Response:
        """`{"add": key}` or `{"revoke": key}`."""
        require_bearer(request, standin.admin_token)
        body = await read_object(request)
        if "add" in body:
            standin.add_key(str(body["add"]))
        if "revoke" in body:
            standin.revoke(str(body["revoke"]))
        return web.json_response({"keys": len(standin.keys)})

    app.router.add_post("/-/admin/rules", add_rule)
    app.router.add_delete("/-/admin/rules", clear_rules)
    app.router.add_get("/-/admin/journal", journal)
    app.router.add_post("/-/admin/keys", keys)
