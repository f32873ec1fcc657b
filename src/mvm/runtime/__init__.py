"""How an instance runs: the protocol in `base`, a package for each runtime."""
