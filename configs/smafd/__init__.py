"""SMAFD."""
