"""FedPT: partially trainable networks."""
