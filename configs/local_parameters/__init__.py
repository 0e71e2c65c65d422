"""Local parameters."""
