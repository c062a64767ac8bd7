"""Producers to look at: a mock KVM on the public API, and real guests of a few bytes."""

__all__: list[str] = []
