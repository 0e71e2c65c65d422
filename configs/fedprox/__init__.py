"""FedProx."""
