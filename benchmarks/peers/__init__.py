"""The same work in other frameworks."""
