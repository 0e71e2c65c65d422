"""User-level differential privacy: clipping, noise, accounting, over jax-privacy and dp-accounting.

What is guaranteed: whoever sees the server's parameters after every round (and so every model
that is ever sent or released) learns little about whether any one client took part with all its
examples. The unit is the client, not the example, and the server is trusted: it sees the clients'
updates and adds the noise (central privacy). Not covered are what clients and server exchange,
the metrics that an experiment logs about its own run (training losses, counts of clients), the
choice of hyperparameters, and the finite precision of floating point noise. The noise comes from a
seeded generator, so that a run can be repeated: whoever knows the seed can subtract the noise. A
model that is to be released needs a seed that is random, secret and used once.

The methods are `dp_fedavg` (independent noise, amplified by sampling) and `dp_ftrl` (correlated
noise, no sampling); this package holds what they are made of and knows no method.
"""
