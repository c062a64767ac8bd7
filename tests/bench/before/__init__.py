"""The examples as programs of prometheus_client: what a move to statsfs begins with."""
