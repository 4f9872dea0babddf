"""Structures: graphs, and networks that answer without them."""
