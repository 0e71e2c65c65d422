"""Several methods chained."""
