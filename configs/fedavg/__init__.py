"""FedAvg and its server optimisers."""
