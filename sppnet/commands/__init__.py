"""The commands: sppnet train, evaluate, tables, prepare_data, benchmark."""
