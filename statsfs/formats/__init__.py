"""A subtree as text or bytes, one format a module. No FUSE, no network."""

__all__: list[str] = []
