"""The agent of one host: API, lifecycle, sleep policy, wake desk, quotas, audit, recovery."""
