"""SCAFFOLD: control variates against client drift."""
