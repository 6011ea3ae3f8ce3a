"""Where the time goes on this machine, and how ours compares with what a user would write."""
