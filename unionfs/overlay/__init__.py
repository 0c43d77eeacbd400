"""The union itself: synchronous, mounted or not; names are bytes and errors are OSError."""
