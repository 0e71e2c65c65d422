"""Scripts: tables, exports."""
