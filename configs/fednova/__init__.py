"""FedNova: normalised averaging."""
