"""The engine: requests in, streams of text out; terminal, servers and benchmarks answer through it."""
