"""Measurements, and what they gave."""
