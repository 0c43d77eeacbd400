"""unionfs: a copy-on-write union filesystem for container layers."""

__version__ = "0.1.0"
