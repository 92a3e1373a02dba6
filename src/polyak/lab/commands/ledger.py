"""``polyak ledger``: look through a ledger of contributions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polyak.lab.commands.app import app
from polyak.lab.errors import BadInput, LabError

ledger = typer.Typer(help="Ledgers of contributions, see polyak.federated.ledger.", no_args_is_help=True)
app.add_typer(ledger, name="ledger")


@ledger.command()
def verify(
    file: Annotated[Path, typer.Argument(help="The file that holds the ledger.")],
    head: Annotated[
        str | None, typer.Option(help="What is known of it from before, ENTRIES:HASH or HASH; it may have grown.")
    ] = None,
) -> None:
    """Compute every hash, payment and state anew; tampering is one line that names the entry, and exit code 1."""
    # here, since no other command needs this room
    from polyak.federated.ledger import LedgerError
    from polyak.federated.ledger import verify as read_through

    if not file.is_file():
        raise BadInput(f"there is no ledger {str(file)!r}")
    try:
        found = read_through(file, head)
    except ValueError as error:
        raise BadInput(f"--{error}") from error
    except LedgerError as error:
        raise LabError(str(error)) from error
    paid = ", ".join(f"{name} {amount}" for name, amount in found.state.balances.items())
    typer.echo(f"{file}: {found.head.entries} entries, as they were written; round {found.state.round}")
    typer.echo(f"head: {found.head}")
    typer.echo(f"paid: {paid or 'nobody yet'}")
