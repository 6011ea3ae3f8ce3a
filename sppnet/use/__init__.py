"""Uses of a trained network: explaining, exporting and publishing it."""
