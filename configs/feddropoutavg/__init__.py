"""FedDropoutAvg."""
