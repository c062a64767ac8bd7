"""`statsfs top`: a tree and its numbers on a terminal; what it shows knows no textual."""

__all__: list[str] = []
