"""The wire: list, detail, live stream, health."""
