"""`camera-edit doctor`: checks whether this machine can run a Serve file, and names the fix of each problem."""
