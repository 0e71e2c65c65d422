"""Federated pruning."""
