"""The machine, processes, files, run directories: what every command needs beside the network."""
