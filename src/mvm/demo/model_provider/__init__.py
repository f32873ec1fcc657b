"""A stand-in for model providers: the Anthropic Messages API, and OpenAI chat completions in brief."""

from mvm.demo.model_provider.journal import ModelCall
from mvm.demo.model_provider.script import Reply, Rule, ToolUse, Trouble
from mvm.demo.model_provider.standin import DEFAULT_MODEL, ModelStandIn

__all__ = ["DEFAULT_MODEL", "ModelCall", "ModelStandIn", "Reply", "Rule", "ToolUse", "Trouble"]
