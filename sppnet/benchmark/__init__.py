"""Measures training and testing on this machine: every stage by itself, and ours beside plain PyTorch."""
