"""Federated dropout."""
