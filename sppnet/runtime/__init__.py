"""The machine, processes, files and run directories: what every command needs besides the network."""
