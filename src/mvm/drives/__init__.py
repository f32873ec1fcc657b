"""Drives of an instance: which there are (`table`) and what is on the ones that mvm writes (`content`)."""
