"""Recordings: the numbers of a subtree over time, as one Parquet file; and pictures of them."""

__all__: list[str] = []
