"""The slow, obviously right versions of things."""
