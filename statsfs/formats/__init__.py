"""The views: what a subtree looks like in one read, one format a module."""

__all__: list[str] = []
