"""What all models share: the closed, immutable record, and fields that hold ids."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from mvm.model import ids
from mvm.model.validation import as_field_check


class Frozen(BaseModel):
    """A closed, immutable record: unknown keys are refused, and what was given instead is in no error's text."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def failed(message: str, *, hint: str | None = None) -> PydanticCustomError:
    """The error to raise in a field check of a model: collected with its path, shown with its hint."""
    return PydanticCustomError("mvm", "{message}", {"message": message, "hint": hint})


TenantIdField = Annotated[ids.TenantId, AfterValidator(as_field_check(ids.tenant_id))]
PoolIdField = Annotated[ids.PoolId, AfterValidator(as_field_check(ids.pool_id))]
UserIdField = Annotated[ids.UserId, AfterValidator(as_field_check(ids.user_id))]
InstanceIdField = Annotated[ids.InstanceId, AfterValidator(as_field_check(ids.instance_id))]
NetIdField = Annotated[ids.TenantNetId, Field(ge=ids.MIN_TENANT_NET_ID, le=ids.MAX_TENANT_NET_ID)]
