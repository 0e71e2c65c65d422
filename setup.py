"""Packaging. Versions that were tested together lie in constraints.txt."""

import setuptools

SPEECH = ["espeakng-loader", "soundfile", "scipy", "jiwer"]

setuptools.setup(
    name="fedlite",
    version="0.1.0",
    description="Federated learning for devices that cannot afford the whole model, in JAX.",
    python_requires=">=3.11",
    packages=setuptools.find_namespace_packages(
        include=[
            f"{package}{suffix}"
            for package in ("fedlite", "experiments", "configs", "scripts")
            for suffix in ("", ".*")
        ]
    ),
    install_requires=[
        "jax>=0.10,<0.13",
        "flax>=0.12",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "ml-collections>=1.1",
        "absl-py>=2.1",
        "numpy>=2",
        "tensorboardX>=2.6",
        "rich>=13",
        "matplotlib>=3.9",
        "safetensors>=0.5",
        "scikit-learn>=1.5",  # the digits set
        "protobuf>=5",
        "tensorflow-datasets>=4.9.7",
        "array-record>=0.8",
        "jax-privacy>=2.0",
        "dp-accounting>=0.6",
    ],
    extras_require={
        "test": [
            *("pytest", "pytest-xdist", "hypothesis", "packaging", "pillow", "ruff", "uv"),
            *SPEECH,
        ],
        "speech": SPEECH,
        "submit": ["submitit"],
        # TensorFlow Federated cannot share an environment with a current JAX:
        # `uv run scripts/export_tff.py` builds one of its own.
    },
)
