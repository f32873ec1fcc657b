"""Networks of tenants on a host: bridges, TAPs, nftables, grants. Comes with the microVM runtimes (DESIGN, Network)."""
