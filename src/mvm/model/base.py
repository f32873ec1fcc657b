"""What all models share: the closed, immutable record, and fields that hold ids."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from mvm.model import ids
from mvm.model.validation import as_field_check


class Frozen(BaseModel):
    """A closed, immutable record: unknown keys are refused, and what was given instead is in no error's text."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class ForEditors:
    """What a JSON Schema says of a value beside its type, such as `pattern`; it checks nothing by itself."""

    def __init__(self, **keywords: object) -> None:
        self._keywords = keywords

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(core_schema), **self._keywords}


def failed(message: str, *, hint: str | None = None) -> PydanticCustomError:
    """The error to raise in a field check of a model: collected with its path, shown with its hint."""
    return PydanticCustomError("mvm", "{message}", {"message": message, "hint": hint})


_NAME = ForEditors(pattern=f"^{ids.NAME_PATTERN}$")
TenantIdField = Annotated[ids.TenantId, AfterValidator(as_field_check(ids.tenant_id)), _NAME]
PoolIdField = Annotated[ids.PoolId, AfterValidator(as_field_check(ids.pool_id)), _NAME]
UserIdField = Annotated[ids.UserId, AfterValidator(as_field_check(ids.user_id)), _NAME]
InstanceIdField = Annotated[
    ids.InstanceId, AfterValidator(as_field_check(ids.instance_id)), ForEditors(pattern="^i-[0-9a-f]{8}$")
]
NetIdField = Annotated[ids.TenantNetId, Field(ge=ids.MIN_TENANT_NET_ID, le=ids.MAX_TENANT_NET_ID)]
