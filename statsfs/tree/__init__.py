"""The sources: their tree, their totals, what they retain, and samples of it."""

__all__: list[str] = []
