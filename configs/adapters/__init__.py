"""Adapters: small trained branches beside a frozen backbone."""
