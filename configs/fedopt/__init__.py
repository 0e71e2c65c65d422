"""Server optimisers: FedAvgM, FedAdagrad, FedAdam, FedYogi."""
