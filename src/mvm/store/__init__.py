"""Where state is kept: JSON documents with revisions and watch.

`mvm.store.base` says what a store promises, `mvm.store.sqlite` is the one of a single host. The interface is a
key-value store with revisions on purpose, so that a fleet can keep the same documents in NATS JetStream; any store must
pass `tests/contract/store_conformance.py`.
"""
