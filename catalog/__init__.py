"""What is known about checkpoints. No sockets, no watching, no event loop."""
