"""Personal data: found in what callers send, hidden from engines, put back into answers."""
