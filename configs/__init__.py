"""Experiment configs: one file an experiment, PAPER/DATASET_WHAT.py."""
