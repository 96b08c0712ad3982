"""`tuneloop gateway`."""

from __future__ import annotations

import click


@click.command()
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port to listen on; 0 takes a free one.  [default: 8100]")
@click.option("--id", "gateway_id", help="Name of this gateway, stable over restarts.  [default: host name and port]")
def gateway(host: str | None, port: int | None, gateway_id: str | None) -> None:
    """Serve the OpenAI API in front of the engines, until stopped."""
    from tuneloop.registry.logs import set_up
    from tuneloop.registry.settings import RegistrySettings
    from tuneloop.serve.gateway.server import serve
    from tuneloop.serve.gateway.settings import GatewaySettings

    settings, registry = GatewaySettings.load(host=host, port=port, id=gateway_id), RegistrySettings.load()
    set_up(registry.log_format, gateway_id=settings.effective_id)
    serve(settings, registry)
