"""absl binaries: train, benchmark."""
