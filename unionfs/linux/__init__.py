"""System calls the standard library lacks: the only home of ctypes. Imports the standard library and ``errors`` only."""
