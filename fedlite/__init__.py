"""fedlite: federated learning for devices that cannot afford the whole model, in JAX."""
