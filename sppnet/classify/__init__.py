"""Image classification: training, and testing over views (arXiv:1406.4729v4, §3)."""
