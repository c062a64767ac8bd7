"""What a value is, and where its integers are. It knows no tree."""

__all__: list[str] = []
