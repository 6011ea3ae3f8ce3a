"""Uses of a trained network: exporting it to files that run elsewhere."""
