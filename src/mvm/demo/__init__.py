"""Stand-ins for the Telegram Bot API and the model providers, for the demo and for tests.

They are servers of mvm's own on loopback addresses only, strict about the rules of the real services, and they say
what they are: in the `Server` header of each answer and at `/-/about`. Nothing here is part of a real deployment.
"""
