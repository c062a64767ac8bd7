"""What people look at a tree with: samples of a mount or server, rates, numbers as text."""

__all__: list[str] = []
