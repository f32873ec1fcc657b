"""A stand-in for the Telegram Bot API, strict about its rules; see `TelegramStandIn`."""

from mvm.demo.telegram.flood import FloodLimits
from mvm.demo.telegram.standin import Sent, TelegramStandIn
from mvm.demo.telegram.transcript import Entry
from mvm.demo.telegram.world import Bot

__all__ = ["Bot", "Entry", "FloodLimits", "Sent", "TelegramStandIn"]
