"""Answering and scoring benchmarks: one module per command, one small file per benchmark."""
