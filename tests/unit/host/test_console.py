"""The web console: who may see it, what it loads, and what a person sees in a real browser."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
from tests.standins.browser import browsing, chromium
from tests.unit.host.live_agent import Agent

from mvm.host.daemon import observed
from mvm.host.reports import Activity
from mvm.model.errors import Unavailable
from mvm.model.ids import InstanceId


@dataclass
class Shown:
    agent: Agent
    link: str

    @property
    def base(self) -> str:
        return self.link.partition("/?")[0]

    @property
    def token(self) -> str:
        return self.link.partition("token=")[2]

    async def get(self, path: str, *, host: str | None = None, cookie: bool = True) -> tuple[int, str]:
        headers = {} if host is None else {"Host": host}
        cookies = {"mvm_console": self.token} if cookie else {}
        async with (
            aiohttp.ClientSession(cookies=cookies, cookie_jar=aiohttp.CookieJar(unsafe=True)) as session,
            session.get(self.base + path, headers=headers, allow_redirects=False) as answer,
        ):
            return answer.status, await answer.text()


@pytest.fixture
async def shown(agent: Agent) -> AsyncIterator[Shown]:
    agent.host.locations = replace(agent.host.locations, metrics_port=0)
    async with observed(agent.host):
        yield Shown(agent, (await agent.call("ConsoleLink"))["url"])


async def test_without_a_port_there_is_no_console_and_the_command_says_what_to_do(agent: Agent) -> None:
    with pytest.raises(Unavailable) as caught:
        await agent.call("ConsoleLink")
    assert "metrics_port" in (caught.value.hint or "")


@pytest.mark.parametrize("path", ["/", "/console.js", "/api/overview", "/api/explain?address=alice", "/api/events"])
async def test_who_has_not_the_token_sees_nothing(shown: Shown, path: str) -> None:
    await shown.agent.deploy()
    status, text = await shown.get(path, cookie=False)
    assert (status, "alice" in text, "mvm console" in text) == (401, False, True)


async def test_a_name_that_was_bound_to_loopback_by_a_stranger_is_not_answered(shown: Shown) -> None:
    port = urlsplit(shown.base).port
    for host in (f"evil.example:{port}", "evil.example", f"127.0.0.1.evil.example:{port}", ""):
        assert (await shown.get("/api/overview", host=host))[0] in (400, 421)
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"):
        assert (await shown.get("/api/overview", host=host))[0] == 200


async def test_the_link_leaves_the_token_in_a_cookie_and_not_in_the_address(shown: Shown) -> None:
    async with (
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
        session.get(shown.link, allow_redirects=False) as answer,
    ):
        assert (answer.status, answer.headers["Location"]) == (303, "/")
        cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    async with aiohttp.ClientSession() as session, session.get(f"{shown.base}/?token=wrong") as answer:
        assert answer.status == 401


async def test_nothing_may_be_loaded_from_elsewhere(shown: Shown) -> None:
    async with (
        aiohttp.ClientSession(cookies={"mvm_console": shown.token}, cookie_jar=None) as session,
        session.get(f"{shown.base}/", headers={"Cookie": f"mvm_console={shown.token}"}) as answer,
    ):
        policy = answer.headers["Content-Security-Policy"]
        page = await answer.text()
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in page.replace("http-equiv", "")


async def test_errors_are_told_with_their_status(shown: Shown) -> None:
    assert (await shown.get("/api/explain?address=nope"))[0] == 404
    status, text = await shown.get("/api/explain?address=A/b")
    assert (status, "error" in json.loads(text)) == (400, True)


async def test_events_are_streamed_from_where_the_browser_was(shown: Shown) -> None:
    await shown.agent.deploy()
    last = shown.agent.host.chronicle.events.last_number
    headers = {"Cookie": f"mvm_console={shown.token}", "Last-Event-ID": str(last - 1)}
    async with aiohttp.ClientSession() as session, session.get(f"{shown.base}/api/events", headers=headers) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        lines = [(await answer.content.readline()).decode() for _ in range(3)]
        assert lines[0] == f"id: {last}\n"
        shown.agent.host.chronicle.events.record("SomethingNew")
        assert (await answer.content.readline()).decode() == f"id: {last + 1}\n"
        assert json.loads((await answer.content.readline()).decode().removeprefix("data: "))["kind"] == "SomethingNew"


EVIL = "<img src=x onerror=\"document.title='hacked'\">"


@pytest.mark.skipif(chromium() is None and "CI" not in os.environ, reason="needs Chromium: apt-get install chromium")
async def test_a_person_sees_tenants_events_and_why_an_instance_is_awake(shown: Shown) -> None:
    agent = shown.agent
    await agent.deploy()
    address = await agent.address()
    instance_id = InstanceId(address.rpartition("/")[2])
    await agent.call("InstanceSleep", address=address, force=True)
    tenant, pool, _ = address.split("/")
    await agent.call("WakeInstance", tenant_id=tenant, pool_id=pool, instance_id=instance_id)
    agent.host.reports.record(instance_id, Activity.BUSY, in_flight=2)
    async with browsing() as page:
        await page.open(shown.link)
        await page.until("document.getElementById('connection')?.textContent === 'live'")
        assert "token" not in await page.evaluate("location.href")
        assert "2 running" in await page.until("document.getElementById('states').innerText")
        await page.click("alice")
        await page.click("alice/workers")
        await page.click(instance_id)
        await page.until("document.querySelector('.timeline') !== null")
        text = await page.text()
        for said in ("awake: it is busy", "busy, 2 in flight", "InstanceWoken", "wake by"):
            assert said in text
        await page.until("document.querySelectorAll('#events li').length > 5")
        if picture := os.environ.get("MVM_CONSOLE_PICTURE"):  # how docs/console.png is made
            await page.screenshot(Path(picture), width=1200, height=720)
        agent.host.chronicle.event(agent.host.catalog.instances[instance_id], "GuestSaid", actor="x", detail=EVIL)
        await page.until("document.getElementById('events').innerText.includes('onerror')")
        assert await page.evaluate("document.title") == "mvm"
        assert await page.evaluate("document.images.length") == 0
        await agent.call("InstanceSleep", address=address, force=True)
        await page.until("document.getElementById('explanation').innerText.includes('put to sleep by')")
        assert {urlsplit(url).netloc for url in page.requested} == {urlsplit(shown.base).netloc}
        assert page.complaints == []
