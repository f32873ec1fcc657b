"""What the system is: ids, tenants, pools, instances, roles, routes, manifests, desired state. Pure data.

Nothing here does I/O, reads a clock or draws a random number; whoever needs those passes them in.
"""
