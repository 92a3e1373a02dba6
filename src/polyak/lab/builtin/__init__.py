"""The problems that come with polyak, one family a file."""
