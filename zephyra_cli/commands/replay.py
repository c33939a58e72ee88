"""`zephyra replay`: an answer of the log a second time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from zephyra_cli.commands.options import Json

if TYPE_CHECKING:
    from zephyra_cli.engine import Answer


def replay(
    name: Annotated[str, typer.Argument(metavar="ID", help="A turn (12.3), or the last one of a conversation (12).")],
    json: Json = False,
) -> None:
    """Ask again what was asked, of the same model with the same settings, and compare.

    The answer goes to standard output. Where it is not the same one, the exit status is 1, and it is said what has
    changed: the model's files, the program, the machine.
    """
    from zephyra_cli import replay as again
    from zephyra_cli import store, ui
    from zephyra_cli.follow import follow, show_text
    from zephyra_cli.log import open_conversations
    from zephyra_fusion.errors import ZephyraError

    conversations = open_conversations(readable=True)
    kept = conversations.turn(name)
    pack = again.pack_of(kept)
    request = again.request_of(kept, conversations)
    engine = again.open_engine(kept, pack)
    changed = again.changes(kept, pack, engine)
    answers: list[Answer] = []
    show = (lambda event: None) if json else show_text
    follow(engine.generate(request), show, stats=False, keep=answers.append)
    difference = again.differs(answers[-1], kept)
    if difference and pack.files:
        changed += [f"the file {fault}" for fault in store.verify(pack)]
    if json:
        texts = {"text": answers[-1].text, "kept": kept.turn.answer}
        ui.write_json({"name": kept.name, "same": not difference, **texts, "changed": changed})
    for change in changed:
        ui.note(f"changed: {change}")
    if not difference:
        ui.note(f"the same answer as {kept.name} of {kept.at}")
        return
    hint = "nothing that the log knows of has changed"
    if cached := kept.replay.get("cached_tokens"):
        hint += (
            f"; {cached} tokens of that prompt were cached then, and sums in another order differ in their last bits"
        )
    raise ZephyraError(f"not the answer of {kept.name}: {difference}", hint=None if changed else hint)
