"""The Python client: `mlxsup.protocol.client.sync.Client`, and `mlxsup.protocol.client.aio.Client` for Trio."""
