"""What a template gives a new deployment: quotas and pools, as plain settings.

The template `openclaw` itself is in `mvm.openclaw.template`; this room may not import that one, so whoever loads a
`deploy.toml` passes the template in.
"""

from __future__ import annotations

from dataclasses import dataclass

from mvm.model.entities import PoolSpec, Quotas


@dataclass(frozen=True, kw_only=True)
class Template:
    """Starting point of `mvm new TEMPLATE NAME`; `[overrides]` of a deploy.toml changes its pools."""

    name: str
    """As a person writes it, such as `openclaw`."""
    quotas: Quotas
    pools: tuple[PoolSpec, ...]
    """Pools to create, complete (`desired` included). `[overrides.<pool_id>]` names them by their `pool_id`."""

    def pool_ids(self) -> tuple[str, ...]:
        """Ids of its pools, in order."""
        return tuple(pool.pool_id for pool in self.pools)
