"""`zephyra templates`: stored prompts with variables, for `zephyra generate -T NAME`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from zephyra_cli.commands.options import Domain, Json, Prompt, System, Temperature, subcommand_follows
from zephyra_cli.complete import template_names

templates = typer.Typer(add_completion=False, rich_markup_mode=None, help="Stored prompts for zephyra generate -T.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="A template's name.", autocompletion=template_names)]


@templates.callback(invoke_without_command=True)
def list_templates(context: typer.Context, json: Json = False) -> None:
    """Stored prompts for zephyra generate -T."""
    if subcommand_follows(context):
        return
    from zephyra_cli import prompt_template, ui
    from zephyra_fusion.errors import ZephyraError

    found = []
    for path in prompt_template.files():
        try:
            found.append(prompt_template.PromptTemplate.read(path))
        except ZephyraError as error:
            ui.note(f"warning: {error.message}")
    if json:
        rows: list[dict[str, Any]] = [
            {
                "name": template.name,
                "description": template.description,
                "variables": template.variables,
                "shipped": template.path.parent == prompt_template.SHIPPED,
                "path": str(template.path),
            }
            for template in found
        ]
        ui.write_json({"templates": rows})
        return
    cells = [(template.name, ", ".join(template.variables) or "-", template.description) for template in found]
    ui.write_table([("TEMPLATE", "VARIABLES", "DESCRIPTION"), *cells])


@templates.command()
def show(name: Name) -> None:
    """Print the file of a template."""
    from zephyra_cli import prompt_template, ui
    from zephyra_cli.prompt import read_text
    from zephyra_fusion.errors import ZephyraError

    path = prompt_template.file_of(name)
    text = read_text(path)
    ui.write(text.rstrip("\n") + "\n")
    try:
        prompt_template.PromptTemplate.parse(text, path)
    except ZephyraError as error:
        ui.note(f"warning: {error.message}")


@templates.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name: letters, digits, '-' and '_'.")],
    prompt: Prompt = None,
    system: System = None,
    domain: Domain = None,
    temperature: Temperature = None,
    description: Annotated[str, typer.Option("--description", metavar="TEXT", help="What the list says.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace one that exists.")] = False,
) -> None:
    """Store a prompt.

    $NAME in it is a variable, $input stands for what is piped in, $$ is a dollar.
    """
    import tomlkit

    from zephyra_cli import home_file, prompt_template, ui
    from zephyra_cli.prompt import read_prompt
    from zephyra_fusion.errors import ZephyraError

    path = prompt_template.path_of(name)
    if path.exists() and not force:
        raise ZephyraError(f"there is a template '{name}' already", hint="--force replaces it")
    texts = {"description": description, "system": system, "domain": domain, "temperature": temperature}
    document = tomlkit.document()
    for key, value in texts.items():
        if value not in (None, ""):
            document[key] = value
    document["prompt"] = tomlkit.string(f"{read_prompt(prompt)}\n", multiline=True)
    prompt_template.PromptTemplate.parse(tomlkit.dumps(document), path)
    home_file.write(path, tomlkit.dumps(document))
    ui.note(f"wrote {path}")


@templates.command()
def edit(name: Name) -> None:
    """Open a template in your editor.

    $VISUAL or $EDITOR; the file is checked afterwards. One that comes with zephyra is copied first.
    """
    from zephyra_cli import home_file, prompt_template
    from zephyra_cli.prompt import read_text

    path = prompt_template.path_of(name)
    ours = prompt_template.SHIPPED / path.name
    home_file.edit(path, beginning=read_text(ours) + "\n" if ours.exists() else prompt_template.EXAMPLE)
    prompt_template.PromptTemplate.read(path)


@templates.command()
def remove(name: Name) -> None:
    """Delete a template of yours."""
    from zephyra_cli import prompt_template, ui
    from zephyra_fusion.errors import ZephyraError

    path = prompt_template.path_of(name)
    try:
        path.unlink()
    except FileNotFoundError:
        raise ZephyraError(f"you have no template '{name}'", hint="zephyra templates lists them") from None
    except OSError as error:
        raise ZephyraError(f"cannot remove '{path}': {error.strerror}") from None
    ui.note(f"removed {path}")
