"""Scanned digits learned by nodes of which each has seen few kinds, with SCAFFOLD-M."""
