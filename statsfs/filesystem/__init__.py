"""The tree as a mounted filesystem. The only room that imports pyfuse3."""

__all__: list[str] = []
