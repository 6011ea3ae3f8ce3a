"""Transfer to other data: features of a frozen network, linear SVMs on them, and the paper's protocols (§3.2, §3.3)."""
