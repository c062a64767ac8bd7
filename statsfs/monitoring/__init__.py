"""The tree for monitoring systems: prometheus_client and HTTP."""

__all__: list[str] = []
