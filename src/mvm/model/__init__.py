"""What the system is: ids, tenants, pools, instances, roles, routes, manifests, desired state. Pure data.

Nothing here reads a clock or draws a random number, and nothing does I/O but the reading of the files that a person
names (`manifest`, `secret_files`); whoever needs the rest passes it in.
"""
