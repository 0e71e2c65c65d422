"""What `scripts.submit` hands to a cluster, and how it watches over it."""
