"""Spatial pyramid pooling networks (He, Zhang, Ren, Sun; arXiv:1406.4729) in PyTorch."""
