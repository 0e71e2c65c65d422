"""HeteroFL."""
