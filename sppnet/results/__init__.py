"""What came out: errors side by side, the paper's tables, sweeps. From records and saved scores alone."""
