"""The outside: finding runs, reading and writing names and sidecars."""
