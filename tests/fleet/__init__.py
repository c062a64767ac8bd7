"""What a fleet of hosts costs those who watch it: `python -m tests.fleet`, and docs/fleet.md."""
