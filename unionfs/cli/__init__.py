"""The commands: one file each. What is heavy (trio, pyfuse3, click) is imported where it is needed, not before."""
