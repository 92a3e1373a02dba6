"""Rules that several methods share, one family a file."""
