"""Detection with linear SVMs on pooled windows (arXiv:1406.4729v4, §4)."""
