"""`zephyra serve`: an OpenAI-compatible HTTP server."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from zephyra_cli.commands import options as opt


def serve(
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; 0.0.0.0 is every network of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0: any free one.")] = 8080,
    model: opt.Model = None,
    domain: opt.Domain = None,
    max_tokens: opt.MaxTokens = None,
    temperature: opt.Temperature = None,
    top_k: opt.TopK = None,
    top_p: opt.TopP = None,
    min_p: opt.MinP = None,
    repeat_penalty: opt.RepeatPenalty = None,
    seed: opt.Seed = None,
    system: opt.System = None,
    backend: opt.Backend = None,
    device: opt.Device = None,
    threads: opt.Threads = None,
    context: opt.Context = None,
    kv_type: opt.KVType = None,
    kv_memory: opt.KVMemory = None,
    draft: opt.Draft = None,
    prompt_cache: opt.PromptCache = None,
    isolate: opt.Isolate = None,
    offline: opt.Offline = None,
    profile: opt.Profile = None,
) -> None:
    """Serve the model to OpenAI clients (/v1/chat/completions, /v1/completions, /v1/models).

    A request's model name says who answers: auto (the router), none (the base), a domain, or a blend as in -d; the
    pack's own name is what -d says. Sampling options are defaults; a request's own go first. ZEPHYRA_API_KEY is the
    key that clients must send.
    """
    options = {name: value for name, value in locals().items() if name in opt.SETTINGS}
    from zephyra_cli import settings, store, ui
    from zephyra_cli.domain import parse_domain
    from zephyra_cli.engine import Engine
    from zephyra_cli.progress import Waiting
    from zephyra_cli.server import Server, is_loopback

    chosen = settings.load(options)
    pack = store.find(chosen.model, offline=chosen.offline)
    if chosen.domain is not None:
        parse_domain(chosen.domain, pack.adapters)  # an unknown one is refused now, not at the first request
    chosen.sampling(pack.generation)
    with Waiting(f"loading {pack.name}"):
        engine = Engine.open(pack, chosen)
    key = os.environ.get("ZEPHYRA_API_KEY", "")
    server = Server(host, port, engine, chosen, key=key)
    ui.note(f"{pack.name} on {server.url}/v1; Ctrl-C ends")
    if not key and not is_loopback(host):
        ui.note("warning: ZEPHYRA_API_KEY is not set, whoever reaches this address may use the model")
    server.run()
