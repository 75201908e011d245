"""Files, time, sockets, lifetimes."""
