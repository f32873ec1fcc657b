"""Messages: the shapes of CONTRACT 9 to the letter, and strictness about everything else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.wire.message_strategies import anyone_of, places

from mvm.wire import messages as m
from mvm.wire.frames import GUEST_FRAME_LIMIT, JsonValue, decode, encode
from mvm.wire.schema import MessageError

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
TARGET = {"tenant_id": "alice", "pool_id": "workers", "instance_id": "i-0a1b2c3d"}
TARGET_FIELDS: dict[str, Any] = dict(TARGET)

SETS: list[tuple[Callable[[JsonValue], Any], tuple[Any, ...]]] = [
    (m.parse_request, get_args(m.HostToGuest)),
    (m.parse_answer, get_args(m.GuestAnswer)),
    (m.parse_host_request, get_args(m.GuestToHost)),
    (m.parse_host_answer, get_args(m.HostAnswer)),
]

REQUESTS: list[tuple[Any, m.HostToGuest]] = [
    ("Ping", m.Ping()),
    ("WorkerStatus", m.QueryWorkerStatus()),
    ({"SleepPrep": {"drain_timeout_secs": 30}}, m.SleepPrep(drain_timeout_secs=30)),
    (
        {"Wake": {"host_time": "2026-11-22T12:00:00Z", "secrets_epoch": 3, "config_version": 2, "entropy": "AAEC"}},
        m.Wake(host_time=NOON, secrets_epoch=3, config_version=2, entropy=b"\x00\x01\x02"),
    ),
    ("Wake", m.BareWake()),
    ("IntegrationStatus", m.IntegrationStatus()),
    ({"CheckpointIntegrations": {"integrations": ["telegram"]}}, m.CheckpointIntegrations(integrations=("telegram",))),
    ({"Refresh": {"secrets_epoch": 4, "config_version": 2}}, m.Refresh(secrets_epoch=4, config_version=2)),
    ({"Exec": {"argv": ["ls", "/"], "timeout_secs": 30}}, m.Exec(argv=("ls", "/"))),
    ({"Exec": {"argv": ["cat"], "stdin": "x", "timeout_secs": 5}}, m.Exec(argv=("cat",), stdin="x", timeout_secs=5)),
    ("Logs", m.Logs()),
    ({"Logs": {"service": "openclaw", "lines": 50}}, m.Logs(service="openclaw", lines=50)),
    ("Stats", m.Stats()),
]
ANSWERS: list[tuple[Any, m.GuestAnswer]] = [
    ("Pong", m.Pong()),
    (
        {"WorkerStatus": {"status": "idle", "last_busy_at": None, "next_alarm_at": None, "in_flight": 0}},
        m.WorkerStatus(status=m.WorkStatus.IDLE),
    ),
    ({"SleepPrepAck": {"success": True, "detail": None, "next_alarm_at": None}}, m.SleepPrepAck(success=True)),
    ({"WakeAck": {"success": True, "detail": None, "restarted": False}}, m.WakeAck(success=True)),
    (
        {
            "IntegrationStatusReport": {
                "integrations": [
                    {
                        "name": "telegram",
                        "status": "active",
                        "last_checkpoint_at": "2026-11-22T12:00:00Z",
                        "state_size_bytes": 7,
                    },
                    {"name": "x", "status": {"error": "text"}, "last_checkpoint_at": None, "state_size_bytes": 0},
                ]
            }
        },
        m.IntegrationStatusReport(
            integrations=(
                m.IntegrationState(
                    name="telegram",
                    status=m.IntegrationPhase.ACTIVE,
                    last_checkpoint_at=NOON,
                    state_size_bytes=7,
                ),
                m.IntegrationState(name="x", status=m.IntegrationFailure(error="text")),
            )
        ),
    ),
    (
        {"CheckpointResult": {"success": False, "failed": ["telegram"], "detail": "..."}},
        m.CheckpointResult(success=False, failed=("telegram",), detail="..."),
    ),
    ({"RefreshAck": {"success": True, "restarted": False}}, m.RefreshAck(success=True)),
    (
        {"ExecResult": {"status": 0, "stdout": "aGk=", "stderr": "", "truncated": False}},
        m.ExecResult(status=0, stdout=b"hi"),
    ),
    ({"Error": {"message": "no"}}, m.Error(message="no")),
]
HOST_REQUESTS: list[tuple[Any, m.GuestToHost]] = [
    ({"WakeInstance": TARGET}, m.WakeInstance(**TARGET_FIELDS)),
    ({"QueryInstanceStatus": TARGET}, m.QueryInstanceStatus(**TARGET_FIELDS)),
    ("QueryHostTime", m.QueryHostTime()),
    (
        {"ReportStatus": {"status": "busy", "in_flight": 1, "next_alarm_at": None}},
        m.ReportStatus(status=m.WorkStatus.BUSY, in_flight=1),
    ),
    ({"RequestPairing": {"peer": "telegram:999", "display_name": None}}, m.RequestPairing(peer="telegram:999")),
    (
        {"ReportEvent": {"kind": "DeliveryFailed", "user": "alice", "detail": "gone"}},
        m.ReportEvent(kind="DeliveryFailed", user="alice", detail="gone"),
    ),
    (
        {"ReportEvent": {"kind": "AnswerSent", "user": None, "detail": None, "worker": "a.b", "trace": "mvm-1:2"}},
        m.ReportEvent(kind="AnswerSent", worker="a.b", trace="mvm-1:2"),
    ),
]
HOST_ANSWERS: list[tuple[Any, m.HostAnswer]] = [
    (
        {"WakeResult": {"success": True, "detail": None, "guest_ip": "10.240.12.4", "state": "running"}},
        m.WakeResult(success=True, guest_ip="10.240.12.4", state="running"),
    ),
    (
        {"InstanceStatus": {"status": "sleeping", "guest_ip": "10.240.12.4"}},
        m.InstanceStatus(status="sleeping", guest_ip="10.240.12.4"),
    ),
    ({"HostTime": {"unix_seconds": 0, "unix_nanos": 0}}, m.HostTime(unix_seconds=0, unix_nanos=0)),
    (
        {"PairingCode": {"code": "K7QF3M", "expires_at": "2026-11-22T12:00:00Z", "tenant_id": "alice"}},
        m.PairingCode(code="K7QF3M", expires_at=NOON, tenant_id="alice"),
    ),
    (
        {"PairingCode": {"code": None, "expires_at": None, "tenant_id": "alice"}},
        m.PairingCode(code=None, expires_at=None, tenant_id="alice"),
    ),
    ("Ok", m.Ok()),
    ({"Error": {"message": "no"}}, m.Error(message="no")),
]


@pytest.mark.parametrize(("shape", "message"), REQUESTS)
def test_requests_to_the_guest(shape: Any, message: m.HostToGuest) -> None:
    assert m.render(message) == shape
    assert m.parse_request(shape) == message


@pytest.mark.parametrize(("shape", "message"), ANSWERS)
def test_answers_of_the_guest(shape: Any, message: m.GuestAnswer) -> None:
    assert m.render(message) == shape
    assert m.parse_answer(shape) == message


@pytest.mark.parametrize(("shape", "message"), HOST_REQUESTS)
def test_requests_to_the_host(shape: Any, message: m.GuestToHost) -> None:
    assert m.render(message) == shape
    assert m.parse_host_request(shape) == message


@pytest.mark.parametrize(("shape", "message"), HOST_ANSWERS)
def test_answers_of_the_host(shape: Any, message: m.HostAnswer) -> None:
    assert m.render(message) == shape
    assert m.parse_host_answer(shape) == message


def test_every_message_of_each_direction_is_covered_above() -> None:
    for (_, kinds), cases in zip(SETS, (REQUESTS, ANSWERS, HOST_REQUESTS, HOST_ANSWERS), strict=True):
        missing = set(kinds) - {type(message) for _, message in cases}  # type: ignore[attr-defined]
        assert missing <= {m.LogsResult, m.StatsResult}  # their shape is not in the contract


@pytest.mark.parametrize(("parse", "kinds"), SETS)
def test_every_message_travels(parse: Callable[[JsonValue], Any], kinds: tuple[Any, ...]) -> None:
    @settings(max_examples=100, deadline=None)
    @given(anyone_of(*kinds))
    def check(message: Any) -> None:
        assert parse(decode(encode(m.render(message)))) == message

    check()


@pytest.mark.parametrize(("parse", "kinds"), SETS)
def test_nothing_but_messages_is_understood(parse: Callable[[JsonValue], Any], kinds: tuple[Any, ...]) -> None:
    """A message with any one place replaced by something else is still a message or a `MessageError`."""
    junk = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.just([]),
        st.just({}),
        st.just({"x": 1}),
        st.just("x" * 10_000),
    )

    @settings(max_examples=100, deadline=None)
    @given(anyone_of(*kinds), junk, st.data())
    def check(message: Any, other: Any, data: st.DataObject) -> None:
        shape = copy.deepcopy(m.render(message))
        place = data.draw(st.sampled_from(places(shape)))
        changed = put(shape, place, other)
        outcome = parsed_or_refused(parse, changed)
        if isinstance(outcome, MessageError):
            assert outcome.problem
            assert len(str(outcome)) < 1000
        else:
            assert type(outcome) in kinds

    check()


def parsed_or_refused(parse: Callable[[JsonValue], Any], value: Any) -> Any:
    try:
        return parse(value)
    except MessageError as error:
        return error


def put(shape: Any, place: tuple[Any, ...], other: Any) -> Any:
    if not place:
        return other
    target = shape
    for step in place[:-1]:
        target = target[step]
    target[place[-1]] = other
    return shape


words = st.sampled_from(["Ping", "Wake", "Exec", "argv", "Error", "message", "Logs", "x"])
nearly = st.recursive(
    st.none() | st.booleans() | st.integers() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


@given(nearly)
def test_no_json_does_more_than_raise_a_message_error(value: Any) -> None:
    for parse, kinds in SETS:
        try:
            assert type(parse(value)) in kinds
        except MessageError:
            continue


@pytest.mark.parametrize(("parse", "kinds"), SETS)
def test_every_key_is_needed_and_no_other_is_allowed(parse: Callable[[JsonValue], Any], kinds: tuple[Any, ...]) -> None:
    optional = {"stdin", "service", "lines", "trace", "worker"}

    @settings(max_examples=100, deadline=None)
    @given(anyone_of(*kinds), st.data())
    def check(message: Any, data: st.DataObject) -> None:
        shape: Any = m.render(message)
        if isinstance(shape, str):
            return
        [(tag, body)] = shape.items()
        with pytest.raises(MessageError, match="unknown key"):
            parse({tag: body | {"extra": 1}})
        key = data.draw(st.sampled_from(sorted(body)))
        if key not in optional:
            with pytest.raises(MessageError, match="missing") as refusal:
                parse({tag: {name: value for name, value in body.items() if name != key}})
            assert refusal.value.path == f"{tag}.{key}"

    check()


DRAIN = "SleepPrep.drain_timeout_secs"
REFUSED: list[tuple[Any, str]] = [
    (None, "a message is a string or an object with one key, got null"),
    (5, "a message is a string or an object with one key, got a number"),
    ([], "a message is a string or an object with one key, got a list"),
    ({}, "a message is an object with one key, got 0"),
    ({"Ping": {}, "Stats": {}}, "a message is an object with one key, got 2"),
    ("Pong", "Pong: unknown message; the messages are: CheckpointIntegrations, Exec,"),
    ("ping", "ping: unknown message"),
    ({"Ping": {}}, "Ping: this message has no fields"),
    ("SleepPrep", "SleepPrep: this message needs fields"),
    ({"SleepPrep": None}, "SleepPrep: expected an object, got null"),
    (
        {"SleepPrep": {"drain_timeout_secs": "30"}},
        f"{DRAIN}: expected a whole number, got a string",
    ),
    (
        {"SleepPrep": {"drain_timeout_secs": 30.0}},
        f"{DRAIN}: expected a whole number, got a number",
    ),
    (
        {"SleepPrep": {"drain_timeout_secs": True}},
        f"{DRAIN}: expected a whole number, got a boolean",
    ),
    ({"SleepPrep": {"drain_timeout_secs": -1}}, f"{DRAIN}: -1 is not between 0 and 86400"),
    ({"Exec": {"argv": [], "timeout_secs": 1}}, "Exec.argv: the list has 0 items and may have 1 to 256"),
    ({"Exec": {"argv": "ls", "timeout_secs": 1}}, "Exec.argv: expected a list, got a string"),
    ({"Exec": {"argv": ["a", 1], "timeout_secs": 1}}, "Exec.argv[1]: expected a string, got a number"),
    ({"Exec": {"argv": ["a"], "timeout_secs": 1, "shell": True}}, "Exec.shell: unknown key; the keys are: argv, stdin"),
    (
        {"CheckpointIntegrations": {"integrations": ["../x"]}},
        "CheckpointIntegrations.integrations[0]: '../x' is",
    ),
    ({"Refresh": {"secrets_epoch": 1}}, "Refresh.config_version: missing"),
    (
        {"Wake": {"host_time": "now", "secrets_epoch": 1, "config_version": 1, "entropy": ""}},
        "Wake.host_time: 'now' is not a UTC time",
    ),
    (
        {"Wake": {"host_time": "2026-11-22T12:00:00Z", "secrets_epoch": 1, "config_version": 1, "entropy": "A"}},
        "Wake.entropy: not base64",
    ),
    (
        {"Wake": {"host_time": "2026-11-22T12:00:00Z", "secrets_epoch": 1, "config_version": 1, "entropy": "A" * 9999}},
        "Wake.entropy: the data is longer than 1024 bytes",
    ),
]


@pytest.mark.parametrize(("value", "text"), REFUSED)
def test_refusals_name_the_place_and_the_rule(value: Any, text: str) -> None:
    with pytest.raises(MessageError) as refusal:
        m.parse_request(value)
    assert str(refusal.value).startswith(text)


@pytest.mark.parametrize(
    "peer", ["telegram:", "telegram:abc", "sms:1", "telegram:1\n", "telegram:" + "1" * 21, "telegram:" + chr(0x661)]
)
def test_a_peer_is_checked(peer: str) -> None:
    with pytest.raises(MessageError, match=r"RequestPairing\.peer"):
        m.parse_host_request({"RequestPairing": {"peer": peer, "display_name": None}})


@pytest.mark.parametrize("address", ["10.0.0.256", "::1", "10.0.0.1/24", "localhost", "", "1" * 100])
def test_an_address_is_checked(address: str) -> None:
    with pytest.raises(MessageError, match=r"InstanceStatus\.guest_ip"):
        m.parse_host_answer({"InstanceStatus": {"status": "running", "guest_ip": address}})


def test_a_direction_understands_only_its_own_messages() -> None:
    cases: list[tuple[Any, Callable[[JsonValue], Any]]] = [
        ({"WakeInstance": TARGET}, m.parse_request),
        ("QueryHostTime", m.parse_request),
        ("Ping", m.parse_host_request),
        ({"Exec": {"argv": ["x"], "timeout_secs": 1}}, m.parse_host_request),
        ("Ok", m.parse_answer),
        ("Pong", m.parse_host_answer),
    ]
    for value, parse in cases:
        with pytest.raises(MessageError, match="unknown message"):
            parse(value)


def test_a_long_error_is_cut_so_that_it_arrives() -> None:
    answer = m.Error(message="x" * 1_000_000 + "\ud800")
    arrived = m.parse_answer(decode(encode(m.render(answer))))
    assert isinstance(arrived, m.Error)
    assert arrived.message.endswith("…")
    assert len(arrived.message) == 4096


def test_the_largest_output_of_a_command_fits_a_frame() -> None:
    answer = m.ExecResult(status=0, stdout=b"\xff" * m.MAX_OUTPUT, stderr=b"\xff" * m.MAX_OUTPUT, truncated=True)
    assert m.parse_answer(decode(encode(m.render(answer), GUEST_FRAME_LIMIT))) == answer


def test_entropy_is_not_shown() -> None:
    wake = m.Wake(host_time=NOON, secrets_epoch=1, config_version=1, entropy=b"do not show")
    assert "do not show" not in repr(wake)
