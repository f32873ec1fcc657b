"""Encryption at rest and tokens."""
