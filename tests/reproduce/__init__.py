"""Recorded vectors recomputed from their manifest and their recorded inputs alone: ``python -m tests.reproduce``.

One file a family, each with ``RULES``: for every rule that it knows, a function from a :class:`~tests.reproduce.vector
.Vector` to all its outputs by name. No number or shape of a vector stands in them.
"""
