"""Strangers, codes, and the operators who bind them."""

import re
from datetime import timedelta
from pathlib import Path

import pytest
from tests.unit.host.services import ALICE, Services, opened

from mvm.host.pairing import MAX_ANSWERS_PER_CODE, MAX_CODES_PER_GATEWAY, MAX_WRONG_CODES, Offer
from mvm.host.tenants import TenantChanges
from mvm.model.errors import Conflict, InvalidInput, NotFound, QuotaExceeded
from mvm.model.ids import TenantId, UserId
from mvm.security.tokens import CODE_ALPHABET

STRANGER = "telegram:999"
BOB = UserId("bob")


async def offered(services: Services, peer: str = STRANGER, *, tenant: TenantId = ALICE) -> Offer:
    offer = await services.pairing.request(tenant, peer)
    assert offer is not None
    return offer


async def paired_up(services: Services) -> None:
    """A tenant with one user who is not paired."""
    await services.tenant()
    await services.users.add(ALICE, BOB, actor="test")
    services.operations.refreshed.clear()


async def test_a_code_binds_its_stranger_to_the_user_who_is_not_paired(services: Services) -> None:
    await paired_up(services)
    await services.users.add(ALICE, UserId("carol"), telegram=["1"], actor="test")
    services.operations.refreshed.clear()
    offer = await offered(services)
    user = await services.pairing.pair(ALICE, offer.code, actor="operator")
    assert (user.user_id, user.peers) == (BOB, (STRANGER,))
    assert services.operations.refreshed == [services.gateway().ref]
    assert "UserPaired" in services.kinds(ALICE)


async def test_a_code_is_short_and_has_no_letters_that_look_alike(services: Services) -> None:
    await paired_up(services)
    offer = await offered(services)
    assert re.fullmatch(f"[{CODE_ALPHABET}]{{6}}", offer.code)


async def test_a_code_may_be_typed_in_small_letters(services: Services) -> None:
    await paired_up(services)
    offer = await offered(services)
    assert (await services.pairing.pair(ALICE, f" {offer.code.lower()} ", actor="operator")).user_id == BOB


async def test_a_code_serves_once(services: Services) -> None:
    await paired_up(services)
    offer = await offered(services)
    await services.pairing.pair(ALICE, offer.code, actor="operator")
    with pytest.raises(NotFound, match="not valid"):
        await services.pairing.pair(ALICE, offer.code, actor="operator")


async def test_a_code_expires_after_a_quarter_of_an_hour(services: Services) -> None:
    await paired_up(services)
    offer = await offered(services)
    assert offer.expires_at == services.time.wall + timedelta(minutes=15)
    services.time.passes(timedelta(minutes=15))
    with pytest.raises(NotFound, match="not valid"):
        await services.pairing.pair(ALICE, offer.code, actor="operator")
    assert "pairing/" not in await services.everything()


async def test_a_code_outlives_the_agent(tmp_path: Path) -> None:
    async with opened(tmp_path / "state") as services:
        await paired_up(services)
        offer = await offered(services)
    async with opened(tmp_path / "state") as services:
        assert (await services.pairing.pair(ALICE, offer.code, actor="operator")).peers == (STRANGER,)


async def test_a_stranger_who_writes_on_gets_the_same_code_and_then_silence(services: Services) -> None:
    await paired_up(services)
    first = await offered(services)
    for _ in range(MAX_ANSWERS_PER_CODE - 1):
        assert await services.pairing.request(ALICE, STRANGER) == first
    assert await services.pairing.request(ALICE, STRANGER) is None
    services.time.passes(timedelta(minutes=15))
    again = await offered(services)
    assert again.code != first.code


async def test_a_flood_of_strangers_gets_a_bounded_number_of_codes(services: Services) -> None:
    await paired_up(services)
    offers = [await services.pairing.request(ALICE, f"telegram:{n}") for n in range(MAX_CODES_PER_GATEWAY + 5)]
    assert sum(offer is not None for offer in offers) == MAX_CODES_PER_GATEWAY
    assert len({offer.code for offer in offers if offer}) == MAX_CODES_PER_GATEWAY


async def test_guessing_codes_is_stopped_and_goes_on_later(services: Services) -> None:
    await paired_up(services)
    offer = await offered(services)
    for _ in range(MAX_WRONG_CODES):
        with pytest.raises(NotFound):
            await services.pairing.pair(ALICE, "WRONG2", actor="guesser")
    with pytest.raises(QuotaExceeded):
        await services.pairing.pair(ALICE, offer.code, actor="guesser")
    services.time.passes(timedelta(minutes=15))
    offer = await offered(services)
    await services.pairing.pair(ALICE, offer.code, actor="operator")


async def test_who_is_paired_already_is_no_stranger(services: Services) -> None:
    await services.tenant()
    await services.users.add(ALICE, BOB, telegram=["999"], actor="test")
    assert await services.pairing.request(ALICE, STRANGER) is None


async def test_with_several_unpaired_users_the_user_must_be_named(services: Services) -> None:
    await paired_up(services)
    await services.users.add(ALICE, UserId("carol"), actor="test")
    offer = await offered(services)
    with pytest.raises(InvalidInput) as caught:
        await services.pairing.pair(ALICE, offer.code, actor="operator")
    assert "bob, carol" in str(caught.value.hint)
    user = await services.pairing.pair(ALICE, offer.code, user_id=UserId("carol"), actor="operator")
    assert user.user_id == "carol"


async def test_a_paired_user_is_never_given_a_second_sender_of_a_channel_by_guess(services: Services) -> None:
    await services.tenant()
    await services.users.add(ALICE, BOB, telegram=["111"], actor="test")
    offer = await offered(services)
    with pytest.raises(InvalidInput):
        await services.pairing.pair(ALICE, offer.code, actor="operator")
    discord = await offered(services, "discord:5")
    user = await services.pairing.pair(ALICE, discord.code, actor="operator")
    assert user.peers == ("telegram:111", "discord:5")


async def test_a_code_whose_pairing_fails_stays_valid(services: Services) -> None:
    await paired_up(services)
    offer = await offered(services)
    with pytest.raises(NotFound):
        await services.pairing.pair(ALICE, offer.code, user_id=UserId("nobody"), actor="operator")
    await services.pairing.pair(ALICE, offer.code, actor="operator")


async def test_a_sender_who_was_given_to_somebody_meanwhile_is_not_taken_away(services: Services) -> None:
    await paired_up(services)
    offer = await offered(services)
    await services.users.add(ALICE, UserId("carol"), telegram=["999"], actor="test")
    with pytest.raises(Conflict):
        await services.pairing.pair(ALICE, offer.code, user_id=BOB, actor="operator")


async def test_a_code_of_a_shared_gateway_pairs_a_user_of_a_tenant_that_it_serves(services: Services) -> None:
    hub = await services.tenant("hub")
    bob = await services.tenant("bob", gateway=False)
    await services.users.add(bob, BOB, actor="test")
    offer = await offered(services, tenant=hub)
    with pytest.raises(NotFound, match="not valid"):
        await services.pairing.pair(bob, offer.code, actor="operator")
    await services.tenants.update(hub, TenantChanges(accepts=(bob,)), actor="test")
    await services.tenants.update(bob, TenantChanges(gateway_tenant=hub), actor="test")
    services.operations.refreshed.clear()
    user = await services.pairing.pair(bob, offer.code, actor="operator")
    assert (user.tenant_id, user.peers) == (bob, (STRANGER,))
    assert services.operations.refreshed == [services.gateway(hub).ref]


async def test_a_code_of_another_tenants_gateway_pairs_nobody_here(services: Services) -> None:
    await paired_up(services)
    mallory = await services.tenant("mallory")
    offer = await offered(services, tenant=mallory)
    with pytest.raises(NotFound, match="not valid"):
        await services.pairing.pair(ALICE, offer.code, actor="operator")


@pytest.mark.parametrize("peer", ["", "999", "mail:1", "telegram:", "telegram:1 2", "telegram:" + "9" * 21])
async def test_a_gateway_that_asks_for_nonsense_is_refused(services: Services, peer: str) -> None:
    await paired_up(services)
    with pytest.raises(InvalidInput):
        await services.pairing.request(ALICE, peer)


async def test_the_name_that_a_stranger_chose_cannot_write_to_a_terminal(services: Services) -> None:
    await paired_up(services)
    await services.pairing.request(ALICE, STRANGER, display_name="\x1b[31mEve\n" + "x" * 200)
    stored = await services.everything()
    assert "Eve" in stored
    assert "\\x1b" not in stored
    assert "x" * 100 not in stored


async def test_codes_of_a_destroyed_tenant_are_gone(services: Services) -> None:
    await paired_up(services)
    await offered(services)
    await services.tenants.destroy(ALICE, actor="test")
    assert "pairing/" not in await services.everything()
