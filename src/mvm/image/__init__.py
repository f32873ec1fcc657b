"""How a guest image comes to be."""
