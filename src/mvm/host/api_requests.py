"""Every request that the agent answers (CONTRACT 15)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mvm.host import (
    api_backups,
    api_images,
    api_insight,
    api_instances,
    api_network,
    api_node,
    api_people,
    api_reconcile,
    api_tenants,
    api_upkeep,
)
from mvm.host.api import Request

if TYPE_CHECKING:
    from mvm.host.app import Host

REQUESTS: dict[str, Request[Host]] = {
    **api_node.REQUESTS,
    **api_tenants.REQUESTS,
    **api_upkeep.REQUESTS,
    **api_images.REQUESTS,
    **api_instances.REQUESTS,
    **api_network.REQUESTS,
    **api_people.REQUESTS,
    **api_reconcile.REQUESTS,
    **api_insight.REQUESTS,
    **api_backups.REQUESTS,
}
