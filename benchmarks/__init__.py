"""How fast our own parts are against the tools the field uses, each a module: `python -m benchmarks.evaluate`."""
